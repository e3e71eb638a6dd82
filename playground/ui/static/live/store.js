// What the live frames say, put together: blocks, requests, steps, figures. The protocol is described in
// playground/telemetry/frames.py. One store follows the running engine (P.live); a recording gets one of its own.
(() => {
  "use strict";
  const P = window.Playground;
  const NOBODY = [];
  const KEEP_MS = 30_000; // what the pictures look back
  const MAX_STEPS = 4096;
  const TEXT_MS = 240;

  const decoder = (names) => (row) => { const one = {}; for (let i = 0; i < names.length; i++) one[names[i]] = row[i]; return one; };

  P.Store = class {
    constructor() {
      this.frameListeners = [];
      this.textListeners = [];
      this.saidAt = -Infinity;
      this.saying = 0;
      this.follow = null; // the request that was chosen to be followed; null: whichever suggests itself
      this.span = KEEP_MS; // ms that its charts look back
      this.preferred = () => null; // the id of one that suggests itself more than others
      this.kept = null; // an array: the frames of the last half minute, for who wants to go back; the first is full
      this.clear();
    }

    clear() {
      this.epoch = null;
      this.seq = -1;
      this.time = 0; // ms, of the frame shown
      this.facts = {};
      this.fill = new Uint16Array(1); // tokens in each block, by its id
      this.holders = [NOBODY]; // ids of the requests that hold each block
      this.highest = 0; // the highest block id that was ever seen used
      this.changed = null; // ids of the blocks that the latest frame changed; null: all
      this.requests = new Map();
      this.tables = new Map(); // request id -> physical block of each logical one
      this.slices = new Map(); // request id -> its latest slices, with the time and step they belong to
      this.steps = [];
      this.copies = [];
      this.samples = [];
      this.now = {}; // the latest sample
      this.dropped = 0;
    }

    // Called with every frame: for pictures. `onText` at most four times a second: for figures, which have to be read.
    // Who comes late hears at once what there is.
    onFrame(listener) { this.frameListeners.push(listener); if (this.epoch !== null) listener(this); }
    onText(listener) { this.textListeners.push(listener); if (this.epoch !== null) listener(this); }

    // False where frames are missing: the reader must start anew.
    apply(frame) {
      const opening = Boolean(frame.history);
      if (!opening && (this.epoch === null || frame.seq > this.seq + 1)) return false;
      if (!opening && frame.seq <= this.seq) return true;
      if (opening && frame.epoch !== this.epoch) this.follow = null; // another engine: its requests have other numbers
      if (opening) this.clear();
      if (frame.full) this.begin(frame);
      this.seq = frame.seq;
      this.time = frame.t;
      this.dropped = frame.dropped;
      this.takeBlocks(frame);
      this.takeRequests(frame);
      for (const row of frame.steps) this.takeStep(row);
      for (const [time, source, target] of frame.copies) this.copies.push({ time, source, target });
      if (opening) this.samples = frame.history.map(this.sample);
      if (frame.sample) {
        this.latest = frame.sample;
        this.now = this.sample(frame.sample);
        const last = this.samples.at(-1);
        if (!last || this.now.time_ms - last.time_ms > 100) this.samples.push(this.now);
      }
      this.prune();
      if (this.kept) this.keep(frame.full && !frame.sample ? { ...frame, sample: this.latest } : frame, opening);
      for (const listener of this.frameListeners) listener(this);
      this.say(opening);
      return true;
    }

    keep(frame, opening) {
      if (opening) this.kept = [];
      this.kept.push(frame);
      if (!frame.full) return;
      const oldest = this.time - KEEP_MS;
      const first = this.kept.findLastIndex((one) => one.full && one.t <= oldest);
      if (first > 0) this.kept.splice(0, first);
    }

    begin(frame) {
      this.epoch = frame.epoch;
      this.facts = frame.facts;
      [this.request, this.step, this.slice, this.sample] = ["request", "step", "slice", "sample"].map((name) => decoder(frame.columns[name]));
      this.fill = new Uint16Array(frame.facts.num_blocks + 1);
      this.holders = new Array(frame.facts.num_blocks + 1).fill(NOBODY);
      this.requests.clear();
      this.tables.clear();
    }

    takeBlocks(frame) {
      const ids = [];
      for (const [first, count, fill, holders] of frame.blocks) {
        if (fill || holders.length) this.highest = Math.max(this.highest, first + count - 1);
        for (let id = first; id < first + count; id++) {
          this.fill[id] = fill;
          this.holders[id] = holders.length ? holders : NOBODY;
          ids.push(id);
        }
      }
      this.changed = frame.full ? null : ids;
    }

    takeRequests(frame) {
      for (const row of frame.requests) { const request = this.request(row); this.requests.set(request.id, request); }
      for (const [id, from, blocks] of frame.tables) {
        const table = this.tables.get(id) || [];
        while (table.length < from) table.push(0);
        table.length = from;
        table.push(...blocks);
        if (table.length) this.tables.set(id, table); else this.tables.delete(id);
      }
    }

    takeStep(row) {
      const step = this.step(row);
      step.duration_ms = step.schedule_ms + step.draft_ms + step.prepare_ms + step.forward_ms + step.sample_ms + step.post_ms;
      step.slices = step.slices.map((one) => {
        const slice = this.slice(one);
        slice.step = step;
        if (!this.slices.has(slice.request)) this.slices.set(slice.request, []);
        this.slices.get(slice.request).push(slice);
        return slice;
      });
      this.steps.push(step);
    }

    prune() {
      const oldest = this.time - KEEP_MS;
      const cut = (list, time) => { let n = 0; while (n < list.length && time(list[n]) < oldest) n += 1; if (n) list.splice(0, n); };
      if (this.steps.length > MAX_STEPS) this.steps.splice(0, this.steps.length - MAX_STEPS);
      cut(this.steps, (step) => step.start_ms);
      cut(this.copies, (copy) => copy.time);
      cut(this.samples, (sample) => sample.time_ms + 90_000);
      for (const [id, slices] of this.slices) { cut(slices, (slice) => slice.step.start_ms); if (!slices.length) this.slices.delete(id); }
      for (const [id, request] of this.requests) if (request.ended_ms !== null && request.ended_ms < oldest) this.requests.delete(id);
    }

    say(now) {
      const wait = now ? 0 : this.saidAt + TEXT_MS - performance.now();
      if (this.saying && wait > 0) return;
      window.clearTimeout(this.saying);
      this.saying = 0;
      const tell = () => { this.saying = 0; this.saidAt = performance.now(); for (const listener of this.textListeners) listener(this); };
      if (wait > 0) this.saying = window.setTimeout(tell, wait); else tell();
    }

    // Follow this request; null: whichever suggests itself.
    choose(id) {
      this.follow = id;
      for (const listener of this.frameListeners) listener(this);
      this.say(true);
    }

    // The request whose blocks are "this request's": the chosen one, the tab's own reply, or the first one that runs.
    get followed() {
      if (this.follow !== null) return this.follow;
      const own = this.preferred();
      if (own !== null && this.requests.has(own) && (this.tables.has(own) || !this.tables.size)) return own;
      return this.tables.size ? Math.min(...this.tables.keys()) : own;
    }
    get unfinished() { return [...this.requests.values()].filter((request) => request.state !== "finished"); }
  };

  P.live = new P.Store();
  P.live.kept = [];
  P.live.preferred = () => P.state.request;
})();
