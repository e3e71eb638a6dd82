// The map of the KV cache: one square a physical block, in the order of their ids, and below it the block table of the
// request that is followed. Only squares that changed are drawn again. Blocks are handed out from the lowest id, so the map
// begins small and grows when a block beyond its end is used for the first time. Held still, it can be moved through the last
// half minute: what is shown then is a store of its own that plays the frames that were kept.
(() => {
  "use strict";
  const P = window.Playground;
  const { el, format } = P;
  const MOST_SQUARES = 4096;
  const FIRST_BLOCKS = 256;
  const MAP_HEIGHT = 204;
  const TABLE_HEIGHT = 38;
  const FLASH_MS = 600;

  // Size and place of the squares: as large as the height allows.
  const layout = (count, width) => {
    for (let pitch = 16; pitch > 1; pitch--) {
      const tall = pitch >= 10 ? Math.round(pitch * 1.3) : pitch;
      const columns = Math.max(1, Math.floor(width / pitch));
      const rows = Math.ceil(count / columns);
      if (rows * tall <= MAP_HEIGHT || pitch === 2) return { pitch, tall, columns, rows, gap: pitch >= 12 ? 3 : pitch >= 6 ? 2 : 1 };
    }
    return null;
  };

  P.view("blocks", {
    title: "KV blocks",
    tip: "The physical blocks of the KV cache. Click one to follow the request that holds it. A block keeps the keys and values of so many tokens; a square is filled as far as its block is. Blocks that nobody holds but whose content is kept are cached: a prompt that begins alike finds them. Filled: how many of the token slots of the blocks in use hold a token.",
    mount: (view) => {
      const { store } = view;
      const map = P.canvas({ label: "Map of the KV blocks", height: 168, className: "map" });
      const table = P.canvas({ label: "Block table", height: TABLE_HEIGHT });
      const pause = el("button", { class: "tool small", type: "button", hidden: !store.kept, "aria-pressed": "false", "aria-label": "Pause the map", "data-tip": "Hold the map still while the engine goes on, and go back in time (Space on the map)" }, P.icon("pause"));
      const place = el("input", { type: "range", min: "0", step: "1", "aria-label": "Moment that the map shows" });
      const clock = el("span", { class: "note" });
      const scrub = el("div", { class: "below scrub", hidden: true }, el("span", { text: "Moment" }), place, clock);
      const scale = el("span", { class: "scale" });
      const legend = el("div", { class: "legend" },
        ...[["kv", "this request"], ["other", "another"], ["hatched", "shared"], ["idle", "cached, idle"], ["outlined", "empty"], ["copied", "just copied"]].map(([kind, text]) =>
          el("span", kind === "copied" ? { hidden: true, class: "rare", "data-tip": "Copy on write: a request was about to write into a block that others hold too, and was given a copy of its own. Its square is marked for a moment.", tabindex: "0" } : {}, el("i", ["kv", "other", "idle"].includes(kind) ? { style: `background: var(--pg-${kind})` } : { class: kind }), text)), scale);
      view.tools.append(pause);
      const choice = el("select", { "aria-label": "Request to follow" });
      const tableNote = el("span", { class: "note" });
      const empty = el("p", { class: "none", hidden: true, text: "This engine keeps no KV cache: every step computes all tokens again, and there are no blocks." });
      const below = el("div", { class: "below" }, el("span", { text: "Block table of", "data-tip": "Where the tokens of one request lie: its first block, its second, and so on, each with the number of the physical block. Point at one to find it in the map." }), choice, tableNote);
      view.body.append(map.node, scrub, legend, below, table.node, empty);

      let span = FIRST_BLOCKS; // blocks shown, if there are as many
      let squares = 0; // that show them; each is `bucket` blocks
      let bucket = 1;
      let grid = null;
      let dirty = null; // squares to draw again; null: all
      let heldOf = null; // epoch of what is held still
      let player = null; // while held still: plays what was kept into a store of its own
      let pointed = null; // the block under the pointer or the keyboard, in either picture
      let flashing = new Map(); // block id -> when its flash ends
      let lastCopy = 0;
      let drawnFor = null; // the followed request that the colours were drawn for
      let drawnTail = null;
      let epoch = null;

      const shown = () => (player ? player.store : store);
      const followed = () => shown().followed;
      const idsOf = (square) => { const first = 1 + square * bucket; const ids = []; for (let id = first; id < first + bucket && id < shown().fill.length; id++) ids.push(id); return ids; };
      const squareOf = (id) => Math.floor((id - 1) / bucket);
      const tailOf = (request) => shown().tables.get(request)?.at(-1) ?? null;

      const stateOf = (id, request) => {
        const { fill, holders } = shown();
        const mine = holders[id].includes(request);
        if (holders[id].length > 1) return mine ? "shared" : "shared-other";
        if (holders[id].length) return mine ? "mine" : "other";
        return fill[id] ? "cached" : "empty";
      };

      const fit = (width) => {
        const total = store.facts.num_blocks;
        if (store.epoch !== epoch) { epoch = store.epoch; span = FIRST_BLOCKS; grid = null; lastCopy = store.time; }
        let wanted = span;
        while (wanted < store.highest) wanted *= 2;
        if (grid && grid.width === width && wanted === span) return;
        span = wanted;
        const blocks = Math.min(span, total);
        bucket = Math.ceil(blocks / MOST_SQUARES);
        squares = Math.ceil(blocks / bucket);
        grid = { ...layout(squares, width), width };
        map.height = grid.rows * grid.tall;
        map.node.dataset.grid = [grid.columns, grid.pitch, grid.tall].join(); // for who points at a block from outside
        dirty = null;
      };

      const drawSquare = (g, square, request) => {
        const { pitch, tall, columns, gap } = grid;
        const x = (square % columns) * pitch;
        const y = Math.floor(square / columns) * tall;
        const [w, h] = [pitch - gap, tall - gap];
        const ids = idsOf(square);
        const edge = gap > 1 ? 1 : 0; // a ring reaches beyond its square
        g.clearRect(x - edge, y - edge, pitch, tall);
        const states = ids.map((id) => stateOf(id, request));
        const state = bucket === 1 ? states[0] : ["shared", "mine", "shared-other", "other", "cached", "empty"].find((one) => states.includes(one));
        const size = store.facts.block_size || 1;
        const share = ids.reduce((sum, id) => sum + shown().fill[id], 0) / (ids.length * size);
        if (w >= 5 && state !== "cached") { g.strokeStyle = P.color("line"); g.lineWidth = 1; g.strokeRect(x + 0.5, y + 0.5, w, h); }
        else if (state === "empty") { g.fillStyle = P.color("hover"); g.fillRect(x, y, w, h); }
        const inner = w >= 5 ? [x + 1, y + 1, w - 1, h - 1] : [x, y, w, h];
        if (state !== "empty") {
          const level = state === "cached" ? inner[3] : Math.max(1, Math.round(inner[3] * share));
          g.fillStyle = P.color({ mine: "kv", shared: "kv", other: "other", "shared-other": "other", cached: "idle" }[state]);
          g.fillRect(inner[0], inner[1] + inner[3] - level, inner[2], level);
          if (state.startsWith("shared")) {
            g.save();
            g.beginPath(); g.rect(inner[0], inner[1] + inner[3] - level, inner[2], level); g.clip();
            g.strokeStyle = P.color(state === "shared" ? "other" : "panel");
            g.lineWidth = w >= 5 ? 2 : 1;
            const step = w >= 10 ? 6 : 4;
            for (let d = -h; d < w; d += step) { g.beginPath(); g.moveTo(x + d, y + h + 1); g.lineTo(x + d + h + 1, y); g.stroke(); }
            g.restore();
          }
        }
        if (ids.some((id) => flashing.has(id))) { g.fillStyle = P.color("ink"); g.fillRect(...inner); }
        if (ids.includes(pointed) || ids.includes(drawnTail)) { g.strokeStyle = P.color("ink"); g.lineWidth = gap > 2 ? 1.5 : 1; g.strokeRect(x + 0.5, y + 0.5, w, h); }
      };

      // Copies of the last moment: of the engine's clock, which stands still with the map and where nothing happens.
      const flash = () => {
        const now = performance.now();
        if (player) flashing = new Map(shown().copies.filter((copy) => copy.time > shown().time - FLASH_MS).map((copy) => [copy.target, Infinity]));
        else for (const copy of store.copies) {
          if (copy.time <= lastCopy) continue;
          lastCopy = copy.time;
          flashing.set(copy.target, now + FLASH_MS);
          if (dirty) dirty.add(squareOf(copy.target));
          window.setTimeout(draw, FLASH_MS + 20);
        }
        for (const [id, end] of flashing) if (end <= now) { flashing.delete(id); if (dirty) dirty.add(squareOf(id)); }
      };

      const drawMap = () => {
        const wide = map.node.clientWidth;
        if (!wide) return;
        fit(wide);
        const request = followed();
        const tail = tailOf(request);
        if (request !== drawnFor) { dirty = null; drawnFor = request; }
        if (dirty && tail !== drawnTail) for (const id of [tail, drawnTail]) if (id) dirty.add(squareOf(id));
        drawnTail = tail;
        flash();
        const surface = map.begin(dirty === null);
        if (!surface) return;
        const all = dirty === null || surface.resized;
        if (all) for (let square = 0; square < squares; square++) drawSquare(surface.g, square, request);
        else for (const square of dirty) if (square < squares) drawSquare(surface.g, square, request);
        dirty = new Set();
      };

      const tableGrid = (count, width) => {
        const columns = Math.max(Math.floor(width / 27), Math.ceil(count / 2));
        return { columns, pitch: columns <= Math.floor(width / 27) ? 27 : width / columns };
      };
      const drawTable = () => {
        const surface = table.begin();
        if (!surface) return;
        const { g, width } = surface;
        const request = followed();
        const blocks = shown().tables.get(request) || [];
        const { columns, pitch } = tableGrid(blocks.length, width);
        const size = store.facts.block_size || 1;
        g.font = "10px ui-sans-serif, system-ui, sans-serif";
        g.textAlign = "center";
        g.textBaseline = "middle";
        blocks.forEach((id, index) => {
          const x = (index % columns) * pitch;
          const y = Math.floor(index / columns) * 20;
          const w = pitch > 6 ? pitch - 3 : pitch - (pitch > 2 ? 1 : 0);
          if (!id) { g.strokeStyle = P.color("line"); g.beginPath(); g.moveTo(x, y + 8.5); g.lineTo(x + w, y + 8.5); g.stroke(); return; }
          const level = Math.round((15 * shown().fill[id]) / size);
          const several = shown().holders[id].length > 1;
          g.fillStyle = P.color("kv");
          g.globalAlpha = 0.3;
          g.fillRect(x, y + 1 + 15 - level, w, level);
          g.globalAlpha = 1;
          if (several) { g.fillStyle = P.color("other"); g.fillRect(x, y + 14, w, 2); }
          g.strokeStyle = id === pointed ? P.color("ink") : P.color("kv");
          g.lineWidth = id === pointed ? 1.5 : 1;
          if (w > 4) g.strokeRect(x + 0.5, y + 1.5, w - 1, 15);
          if (w >= 22) { g.fillStyle = P.color("ink"); g.fillText(String(id), x + w / 2, y + 9.5); }
        });
        if (!blocks.length) {
          g.textAlign = "left";
          g.font = "12px ui-sans-serif, system-ui, sans-serif";
          g.fillStyle = P.color("faint");
          g.fillText(request === null ? "The blocks of a reply will stand here in the order of its tokens." : "It holds no blocks now.", 0, 10);
        }
      };

      const draw = () => { if (!store.facts.num_blocks) return; drawMap(); drawTable(); };
      const point = (id) => {
        if (id === pointed) return;
        for (const one of [id, pointed]) if (one && dirty) dirty.add(squareOf(one));
        pointed = id;
        draw();
      };

      const about = (id) => {
        const { fill, holders, tables } = shown();
        const size = store.facts.block_size;
        if (holders[id].length) {
          const who = holders[id].map((request) => `#${request} (its block ${(tables.get(request) || []).indexOf(id) + 1})`);
          return `Block ${P.count(id)}: ${fill[id]} of ${size} tokens, held by ${who.join(", ")}.`;
        }
        return fill[id] ? `Block ${P.count(id)}: cached. ${fill[id]} tokens that nobody uses now, kept for a prompt that begins alike.` : `Block ${P.count(id)}: empty.`;
      };
      const aboutSquare = (square) => {
        const ids = idsOf(square);
        if (ids.length === 1) return about(ids[0]);
        const states = ids.map((id) => stateOf(id, followed()));
        const count = (wanted) => states.filter((state) => wanted.includes(state)).length;
        return `Blocks ${P.count(ids[0])} to ${P.count(ids.at(-1))}: ${count(["mine", "other", "shared", "shared-other"])} in use, ${count(["cached"])} cached, ${count(["empty"])} empty.`;
      };
      const squareAt = (x, y) => {
        if (!grid || x < 0 || y < 0) return null;
        const column = Math.floor(x / grid.pitch);
        const square = Math.floor(y / grid.tall) * grid.columns + column;
        return column < grid.columns && square < squares && idsOf(square).length ? square : null;
      };
      map.hover((x, y) => {
        const square = squareAt(x, y);
        point(square === null ? null : 1 + square * bucket);
        return square === null ? null : aboutSquare(square);
      }, { keys: false });
      table.hover((x, y) => {
        const blocks = shown().tables.get(followed()) || [];
        const { columns, pitch } = tableGrid(blocks.length, table.node.clientWidth);
        const index = Math.floor(y / 20) * columns + Math.floor(x / pitch);
        const id = x < 0 ? undefined : blocks[index];
        point(id || null);
        if (id === undefined) return null;
        const size = store.facts.block_size;
        const tokens = `tokens ${P.count(index * size + 1)} to ${P.count(index * size + Math.max(1, shown().fill[id] || size))}`;
        return id ? `Its block ${index + 1}, ${tokens}. ${about(id)}` : `Its block ${index + 1}, ${tokens}: out of the attention window, given back.`;
      });

      const setPaused = (paused) => {
        if (paused && !store.kept.length) return;
        heldOf = paused ? store.epoch : null;
        if (paused) {
          player = new P.Player([...store.kept], new P.Store());
          place.max = String(player.frames.length - 1);
          place.value = place.max;
          player.show(player.frames.length - 1);
        } else { player = null; lastCopy = store.time; }
        scrub.hidden = !player;
        flashing.clear();
        pause.setAttribute("aria-pressed", String(paused));
        pause.replaceChildren(P.icon(paused ? "play" : "pause"));
        redraw();
      };
      const redraw = () => { dirty = null; text(); draw(); };
      place.addEventListener("input", () => { player.show(Number(place.value)); redraw(); });
      pause.addEventListener("click", () => setPaused(!player));
      map.node.addEventListener("keydown", (event) => {
        if (event.key === " " && store.kept) { event.preventDefault(); setPaused(!player); return; }
        if (event.key === "Enter") { followHolder(); return; }
        const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -(grid?.columns || 1), ArrowDown: grid?.columns || 1 }[event.key];
        if (!by || !grid) return;
        event.preventDefault();
        const square = Math.min(squares - 1, Math.max(0, (pointed ? squareOf(pointed) : -by) + by));
        point(1 + square * bucket);
        const box = map.node.getBoundingClientRect();
        P.tip.at(box.left + (square % grid.columns) * grid.pitch, box.top + Math.floor(square / grid.columns) * grid.tall + grid.tall, aboutSquare(square));
        map.says(aboutSquare(square));
      });
      map.node.addEventListener("blur", () => { point(null); P.tip.hide(); });

      choice.addEventListener("change", () => store.choose(choice.value === "" ? null : Number(choice.value)));
      const followHolder = () => { const [holder] = pointed ? shown().holders[pointed] : []; if (holder !== undefined) store.choose(holder); };
      map.node.addEventListener("click", followHolder);
      const choose = () => {
        const ids = store.unfinished.map((request) => request.id).sort((a, b) => a - b);
        if (store.follow !== null && !ids.includes(store.follow)) ids.unshift(store.follow);
        const own = store.follow === null && store.followed !== null ? `the current one, #${store.followed}` : "the current one";
        const wanted = [["", own], ...ids.map((id) => [String(id), `#${id}`])];
        const now = [...choice.options].map((option) => option.value + option.text).join();
        if (now !== wanted.map(([value, name]) => value + name).join() && document.activeElement !== choice) choice.replaceChildren(...wanted.map(([value, name]) => el("option", { value, text: name })));
        choice.value = store.follow === null ? "" : String(store.follow);
      };

      const text = () => {
        const total = store.facts.num_blocks;
        for (const node of [map.node, legend, below, table.node]) node.hidden = !total;
        pause.hidden = !total || !store.kept;
        empty.hidden = Boolean(total);
        if (!total) { view.note(""); return; }
        const { blocks_in_use: used, blocks_shared: both, blocks_cached: cached, slots_in_use: slots } = shown().now;
        const filled = used ? slots / (used * store.facts.block_size) : null;
        const said = [span < total ? `first ${P.count(span)} of ${P.count(total)}` : "", bucket > 1 ? `${bucket} blocks a square` : ""].filter(Boolean).join(" · ");
        if (scale.textContent !== said) scale.textContent = said;
        if (shown().copies.length) legend.querySelector(".rare").hidden = false;
        const figures = [`${P.count(used)} in use`, `${P.count(both)} shared`, `${P.count(cached)} cached`, `${P.count(total - used - cached)} empty`];
        if (filled !== null) figures.push(`${P.written(format.percent(filled))} filled`);
        view.note(figures.join(" · "));
        if (player) {
          clock.textContent = place.value === place.max ? "held still here" : `${P.written(format.ms(player.duration - player.store.time))} before`;
          place.setAttribute("aria-valuetext", clock.textContent);
          player.store.follow = store.followed;
        }
        choose();
        const request = shown().requests.get(followed());
        const blocks = shown().tables.get(followed()) || [];
        const state = request ? (request.state === "finished" ? "ended" : request.state) : "";
        tableNote.textContent = blocks.length ? `${P.count(blocks.length)} ${blocks.length === 1 ? "block" : "blocks"} · ${P.count(request ? request.computed_tokens : 0)} tokens in them` : state;
        const words = `KV blocks: ${figures.join(", ")}, of ${P.count(total)}.`;
        view.says(words);
        if (!pointed) map.says(`Map of the KV blocks. ${words} Arrow keys go through them.`);
        table.says(blocks.length ? `Block table of request ${followed()}: ${blocks.length} blocks, physical numbers ${blocks.slice(0, 40).join(", ")}${blocks.length > 40 ? " and more" : ""}.` : "Block table: no blocks.");
      };

      store.onFrame(() => {
        if (player && store.epoch !== heldOf) setPaused(false); // another engine: what was held still is not of it
        if (player || !dirty) return;
        if (store.changed === null) dirty = null; else for (const id of store.changed) dirty.add(squareOf(id));
      });
      return { draw, text, redraw: () => { dirty = null; } };
    },
  });
})();
