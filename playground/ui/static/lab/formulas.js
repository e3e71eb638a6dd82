// The arithmetic of the Lab's theory. Pure: numbers in, numbers out. The tests hold it to the engine's own (speculation:
// playground/engine/speculation/formula.py; KV bytes: DecoderConfig.kv_bytes_per_token) and to exact enumeration.
(() => {
  "use strict";
  const P = window.Playground;
  const LONGEST = 64;

  const F = P.formulas = {
    // Tokens of a step with k drafts, each accepted with probability a: 1 + a + … + a^k.
    expectedTokens: (a, k) => { let sum = 0; for (let i = k; i >= 0; i--) sum += a ** i; return sum; },

    // Against plain decoding; c: time of one draft token, v: of the step that verifies, both in plain steps.
    speedup: (tokens, k, c, v) => tokens / (k * c + v),

    // The number of drafts with the highest speed-up; 0 where none is faster than no drafts.
    best: (a, c, v, longest = LONGEST) => {
      let best = { k: 0, speedup: 1 };
      for (let k = 1; k <= longest; k++) {
        const speedup = F.speedup(F.expectedTokens(a, k), k, c, v);
        if (speedup > best.speedup) best = { k, speedup };
      }
      return best;
    },

    // Bytes of a number, and of the scale that each head of a token has where numbers are codes.
    DTYPES: { float32: [4, 0], bfloat16: [2, 0], float16: [2, 0], int8: [1, 1], fp8: [1, 1] },

    kvBytesPerToken: ({ layers, kvHeads, headDim, dtype }) => {
      const [number, scale] = F.DTYPES[dtype];
      return 2 * layers * kvHeads * (headDim * number + scale);
    },

    // Of sequences of `context` tokens each; a window (0: none) keeps its last tokens only.
    kvBytes: (shape, { context, window = 0, batch = 1 }) => F.kvBytesPerToken(shape) * (window ? Math.min(context, window) : context) * batch,

    // Sequences of every length from `shortest` to `longest`, equally often, in blocks of `size` tokens: means of a sequence.
    waste: ({ shortest, longest, size }) => {
      // Σ ceil(n / size) for n = 1 … limit, without a loop
      const blocksUpTo = (limit) => { const whole = Math.floor(limit / size); return size * whole * (whole + 1) / 2 + (limit % size) * (whole + 1); };
      const count = longest - shortest + 1;
      const tokens = (shortest + longest) / 2;
      const blocks = (blocksUpTo(longest) - blocksUpTo(shortest - 1)) / count;
      const slots = blocks * size;
      return { tokens, blocks, slots, wasted: slots - tokens, share: (slots - tokens) / slots, lastFill: (tokens - slots + size) / size };
    },

    // Operations and bytes of one step in which `batch` requests compute `tokens` each and then have `context` in the cache.
    // Products: 2 for each weight and token. Attention: 4 x layers x heads x head dim for each token and each one it sees.
    step: ({ parameters, weightBits, layers, heads, headDim, kvBytesPerToken }, { batch, context, tokens }) => {
      const now = Math.min(tokens, context);
      const seen = context - (now - 1) / 2;
      const operations = batch * now * (2 * parameters + 4 * layers * heads * headDim * seen);
      const weights = parameters * weightBits / 8;
      const kv = batch * context * kvBytesPerToken;
      return { operations, bytes: weights + kv, weights, kv, intensity: operations / (weights + kv), tokens: batch * now };
    },

    // How long it takes at least, and what it waits for.
    bound: (step, { bandwidth, operations }) => {
      const [memory, compute] = [step.bytes / bandwidth, step.operations / operations];
      return { seconds: Math.max(memory, compute), by: memory >= compute ? "memory" : "arithmetic", rate: step.operations / Math.max(memory, compute), ridge: operations / bandwidth };
    },
  };
})();
