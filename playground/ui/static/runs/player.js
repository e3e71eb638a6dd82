// Plays the frames of a recording into a store of its own, forwards, backwards, step by step. Going back starts from the
// full frame before the place, with the steps and samples until then.
(() => {
  "use strict";
  const P = window.Playground;
  const LOOK_BACK_MS = 30_000;

  P.Player = class {
    constructor(frames, store) {
      this.frames = frames;
      this.store = store;
      this.times = frames.map((frame) => frame.t);
      this.duration = this.times.at(-1);
      this.index = -1; // of the frame shown
      this.time = 0;
      this.speed = 1;
      this.playing = false;
      this.listeners = [];
      this.rebuilt = 0;
      const columns = frames[0].columns;
      this.startOf = columns.step.indexOf("start_ms");
    }

    onChange(listener) { this.listeners.push(listener); }
    tell() { for (const listener of this.listeners) listener(this); }

    // The last frame at or before a time.
    indexAt(time) { let low = 0; let high = this.times.length; while (low < high) { const middle = (low + high) >> 1; if (this.times[middle] <= time) low = middle + 1; else high = middle; } return Math.max(0, low - 1); }

    opening(index) {
      const frame = this.frames[index];
      const before = this.frames.slice(0, index + 1);
      const history = before.map((one) => one.sample).filter(Boolean);
      const steps = before.flatMap((one) => one.steps).filter((step) => step[this.startOf] >= frame.t - LOOK_BACK_MS);
      this.rebuilt += 1;
      return { ...frame, epoch: `${frame.epoch}/${this.rebuilt}`, history, steps, copies: [], sample: history.at(-1) };
    }

    show(index) {
      if (index === this.index) return;
      if (index < this.index || this.index < 0) {
        let from = index;
        while (!this.frames[from].full) from -= 1;
        const { follow } = this.store;
        this.store.apply(this.opening(from));
        this.store.follow = follow;
        this.index = from;
      }
      while (this.index < index) { this.index += 1; this.store.apply(this.frames[this.index]); }
    }

    seek(time) {
      this.time = Math.min(Math.max(time, 0), this.duration);
      this.show(this.indexAt(this.time));
      this.tell();
    }

    // To the next step, or the one before.
    step(by) { this.pause(); const index = Math.min(Math.max(this.index + by, 0), this.frames.length - 1); this.seek(this.times[index]); if (this.index !== index) { this.show(index); this.tell(); } }

    play() {
      if (this.playing) return;
      if (this.time >= this.duration) this.seek(0);
      this.playing = true;
      let before = performance.now();
      const tick = (now) => {
        if (!this.playing) return;
        const passed = Math.max(0, now - before) * this.speed;
        before = now;
        this.seek(this.time + passed);
        if (this.time >= this.duration) this.pause(); else window.requestAnimationFrame(tick);
      };
      window.requestAnimationFrame(tick);
      this.tell();
    }

    pause() { if (this.playing) { this.playing = false; this.tell(); } }
    toggle() { if (this.playing) this.pause(); else this.play(); }
  };
})();
