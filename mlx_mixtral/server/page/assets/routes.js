// The routing of one answer, counted while it grows.

export class Routes {
  /** Of a message's `tokens` (conversation.js says what they hold). */
  constructor(tokens) {
    this.tokens = tokens;
    this.layers = tokens.layers;
    this.experts = tokens.experts;
    this.each = tokens.each;
    this.counted = 0;
    this.chosen = new Uint32Array(this.layers * this.experts);
    this.firsts = new Uint32Array(this.layers * this.experts);
    this.repeats = new Uint32Array(this.layers);
    this.count();
  }

  get length() {
    return this.tokens.starts.length;
  }

  /** The expert that a layer chose for a token: `rank` 0 weighs most. */
  expert(token, layer, rank = 0) {
    return this.tokens.routes[(token * this.layers + layer) * this.each + rank];
  }

  has(token, layer, expert) {
    for (let rank = 0; rank < this.each; rank += 1) {
      if (this.expert(token, layer, rank) === expert) return true;
    }
    return false;
  }

  /** Counts the tokens that came since the last time; how many they are. */
  count() {
    const before = this.counted;
    for (; this.counted < this.length; this.counted += 1) {
      const token = this.counted;
      for (let layer = 0; layer < this.layers; layer += 1) {
        for (let rank = 0; rank < this.each; rank += 1) {
          this.chosen[layer * this.experts + this.expert(token, layer, rank)] += 1;
        }
        const first = this.expert(token, layer);
        this.firsts[layer * this.experts + first] += 1;
        if (token && first === this.expert(token - 1, layer)) this.repeats[layer] += 1;
      }
    }
    return this.counted - before;
  }

  /** The share of tokens that a layer sent to an expert. */
  share(layer, expert) {
    return this.counted ? this.chosen[layer * this.experts + expert] / this.counted : 0;
  }

  /** The share of all choices, in all layers, that fell on the experts of one number. */
  load(expert) {
    let sum = 0;
    for (let layer = 0; layer < this.layers; layer += 1) sum += this.share(layer, expert);
    return sum / (this.layers * this.each);
  }

  /** How often a layer's first choice was the same as for the token before. */
  kept(layer) {
    return this.counted > 1 ? this.repeats[layer] / (this.counted - 1) : 0;
  }

  /** Means over the layers: experts in use (exp of the entropy of the choices), and `kept`. */
  summary() {
    let [used, kept] = [0, 0];
    for (let layer = 0; layer < this.layers; layer += 1) {
      let entropy = 0;
      for (let expert = 0; expert < this.experts; expert += 1) {
        const share = this.share(layer, expert) / this.each;
        if (share) entropy -= share * Math.log(share);
      }
      used += Math.exp(entropy) / this.layers;
      kept += this.kept(layer) / this.layers;
    }
    return { used, kept };
  }
}
