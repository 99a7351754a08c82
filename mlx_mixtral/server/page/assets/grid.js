// The picture of the routing: a row a layer, a column an expert. The glow of a cell is the share
// of the answer's tokens that its expert worked on; the threads are the way of one token (and, while an
// answer comes, of the last few) through the layers. Below, the load of each column; at the
// right, how often a layer's first choice stayed the same from one token to the next.

const LEFT = 38;
const RIGHT = 46;
const TOP = 24;
const BOTTOM = 44;
const TRAIL = 5; // tokens whose threads are seen while an answer comes
const FADE = 800; // milliseconds, of threads
const GLOW = 320; // of cells

export class Grid {
  /** `on` = {hover(layer, expert) or hover(null), select(layer or null)}. */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    this.routes = null;
    this.token = null;
    this.layer = null;
    this.cell = null;
    this.heat = new Float64Array(0); // when each cell last lit up
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointermove", (event) => this.point(this.hit(event)));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("click", (event) => {
      const hit = this.hit(event);
      if (hit) this.on.select(hit.layer === this.layer ? null : hit.layer);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.point(null));
  }

  /** Another answer, or none; `model` {layers, experts} is drawn empty then. */
  show(routes, model) {
    this.routes = routes;
    this.layers = routes?.layers ?? model.layers;
    this.experts = routes?.experts ?? model.experts;
    this.heat = new Float64Array(this.layers * this.experts).fill(-Infinity);
    this.canvas.style.height = `${TOP + this.layers * this.pitch() + BOTTOM}px`;
    this.draw();
  }

  pitch() {
    return Math.max(8.5, Math.min(36, 430 / this.layers));
  }

  /** Lights up what the last tokens chose. */
  lit(many) {
    const now = performance.now();
    const { routes } = this;
    for (let token = Math.max(0, routes.length - Math.min(many, 2)); token < routes.length; token += 1) {
      for (let layer = 0; layer < this.layers; layer += 1) {
        for (let rank = 0; rank < routes.each; rank += 1) {
          this.heat[layer * this.experts + routes.expert(token, layer, rank)] = now;
        }
      }
    }
    this.trailUntil = now + FADE;
    this.animate();
  }

  animate() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
      if (performance.now() < this.trailUntil && !this.calm.matches) this.animate();
    });
  }

  place(layer, expert) {
    const width = (this.canvas.clientWidth - LEFT - RIGHT) / this.experts;
    const height = this.pitch();
    return { x: LEFT + (expert + 0.5) * width, y: TOP + (layer + 0.5) * height, width, height };
  }

  hit(event) {
    const { width, height } = this.place(0, 0);
    const expert = Math.floor((event.offsetX - LEFT) / width);
    const layer = Math.floor((event.offsetY - TOP) / height);
    if (layer < 0 || layer >= this.layers || event.offsetX > LEFT + width * this.experts + RIGHT) return null;
    return { layer, expert: expert >= 0 && expert < this.experts ? expert : null };
  }

  point(cell) {
    const same = cell?.layer === this.cell?.layer && cell?.expert === this.cell?.expert;
    if (same && Boolean(cell) === Boolean(this.cell)) return;
    this.cell = cell;
    this.on.hover(cell);
    this.draw();
  }

  key(event) {
    const at = this.cell ?? { layer: 0, expert: 0 };
    const step = (by, size, old) => Math.max(0, Math.min(size - 1, (old ?? 0) + by));
    const moves = {
      ArrowUp: () => this.point({ ...at, layer: step(-1, this.layers, at.layer) }),
      ArrowDown: () => this.point({ ...at, layer: step(this.cell ? 1 : 0, this.layers, at.layer) }),
      ArrowLeft: () => this.point({ ...at, expert: step(-1, this.experts, at.expert) }),
      ArrowRight: () => this.point({ ...at, expert: step(1, this.experts, at.expert) }),
      Enter: () => this.on.select(at.layer === this.layer ? null : at.layer),
      Escape: () => this.on.select(null),
    };
    if (!moves[event.key] || (event.key === "Escape" && this.layer === null)) return;
    event.preventDefault();
    event.stopPropagation();
    moves[event.key]();
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!this.layers || !width) return;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    this.pen = canvas.getContext("2d");
    this.pen.setTransform(scale, 0, 0, scale, 0, 0);
    this.pen.clearRect(0, 0, width, height);
    this.ink = inks(canvas);
    this.pen.font = `500 10.5px ${this.ink.font}`;
    this.pen.textBaseline = "middle";
    this.drawNames();
    this.drawCells();
    this.drawLoads();
    this.drawKept();
    if (this.routes) this.drawThreads();
  }

  label(text, x, y, strong = false, align = "center") {
    this.pen.textAlign = align;
    this.pen.fillStyle = strong ? this.ink.ink : this.ink.muted;
    this.pen.fillText(text, x, y);
  }

  drawNames() {
    for (let expert = 0; expert < this.experts; expert += 1) {
      this.label(expert, this.place(0, expert).x, TOP - 13, expert === this.cell?.expert);
    }
    const every = this.layers > 40 ? 8 : this.layers > 12 ? 4 : 1;
    const named = this.cell?.layer ?? this.layer;
    for (let layer = 0; layer < this.layers; layer += 1) {
      const own = layer === named;
      const near = named != null && Math.abs(layer - named) * this.pitch() < 12;
      const last = layer === this.layers - 1;
      const shown = last || (layer % every === 0 && this.layers - 1 - layer >= every / 2);
      if (own || (shown && !near)) this.label(layer, LEFT - 9, this.place(layer, 0).y, own, "right");
    }
  }

  drawCells() {
    const now = performance.now();
    const gap = this.pitch() > 16 ? 3 : 1.5;
    for (let layer = 0; layer < this.layers; layer += 1) {
      for (let expert = 0; expert < this.experts; expert += 1) {
        const { x, y, width, height } = this.place(layer, expert);
        const box = [x - width / 2 + gap / 2, y - height / 2 + gap / 2, width - gap, height - gap];
        const share = this.routes?.share(layer, expert) ?? 0;
        const even = this.routes ? this.routes.each / this.experts : 1;
        this.fill(box, this.ink.cell, 1);
        const hue = layer === this.layer ? this.ink.experts[expert % 8] : this.ink.ember;
        if (share) this.fill(box, hue, 0.05 + 0.92 * (1 - Math.exp(-0.36 * (share / even) ** 1.4)));
        const age = (now - this.heat[layer * this.experts + expert]) / GLOW;
        if (age < 1 && !this.calm.matches) this.fill(box, this.ink.flame, 0.85 * (1 - age) ** 2);
        const pointed = this.cell?.layer === layer && this.cell.expert === expert;
        if (pointed) this.outline(box);
      }
    }
  }

  fill([x, y, width, height], color, alpha) {
    this.pen.globalAlpha = alpha;
    this.pen.fillStyle = color;
    this.pen.beginPath();
    this.pen.roundRect(x, y, width, height, Math.min(5, height / 3));
    this.pen.fill();
    this.pen.globalAlpha = 1;
  }

  outline([x, y, width, height]) {
    this.pen.strokeStyle = this.ink.ink;
    this.pen.lineWidth = 1.5;
    this.pen.beginPath();
    this.pen.roundRect(x, y, width, height, Math.min(5, height / 3));
    this.pen.stroke();
  }

  /** Bars below the columns, with a line where even loads would end. */
  drawLoads() {
    const top = TOP + this.layers * this.pitch() + 8;
    const size = BOTTOM - 14;
    const most = 2.5 / this.experts;
    for (let expert = 0; expert < this.experts; expert += 1) {
      const { x, width } = this.place(0, expert);
      const length = this.routes ? Math.min(1, this.routes.load(expert) / most) * size : 0;
      if (length) this.fill([x - width / 2 + 3, top, width - 6, Math.max(2, length)], this.ink.ember, 0.75);
    }
    this.rule(LEFT, top + size / 2.5, this.place(0, this.experts - 1).x + this.place(0, 0).width / 2);
    this.label("load", LEFT - 9, top + size / 2.5, false, "right");
  }

  /** Bars right of the rows, with a line where chance would end. */
  drawKept() {
    const left = LEFT + this.place(0, 0).width * this.experts + 8;
    const size = RIGHT - 12;
    this.label("repeat", left + size / 2, TOP - 13);
    for (let layer = 0; layer < this.layers; layer += 1) {
      const { y, height } = this.place(layer, 0);
      const length = this.routes ? this.routes.kept(layer) * size : 0;
      const thick = Math.min(6, height - 3);
      if (length) this.fill([left, y - thick / 2, Math.max(2, length), thick], this.ink.muted, 0.6);
    }
    this.rule(left + size / this.experts, TOP, null, TOP + this.layers * this.pitch());
  }

  rule(x, y, right, bottom) {
    this.pen.strokeStyle = this.ink.muted;
    this.pen.globalAlpha = 0.7;
    this.pen.lineWidth = 1;
    this.pen.setLineDash([2, 3]);
    this.pen.beginPath();
    this.pen.moveTo(x, y);
    this.pen.lineTo(right ?? x, bottom ?? y);
    this.pen.stroke();
    this.pen.setLineDash([]);
    this.pen.globalAlpha = 1;
  }

  drawThreads() {
    if (this.token !== null) {
      this.drawThread(this.token, 1);
      return;
    }
    const left = this.trailUntil - performance.now();
    if (!(left > 0) || this.calm.matches) return;
    for (let back = TRAIL - 1; back >= 0; back -= 1) {
      const token = this.routes.length - 1 - back;
      if (token >= 0) this.drawThread(token, (left / FADE) * (1 - back / TRAIL) ** 2, back > 0);
    }
  }

  drawThread(token, alpha, thin = false) {
    for (let rank = Math.min(this.routes.each, 2) - 1; rank >= 0; rank -= 1) {
      const points = [];
      for (let layer = 0; layer < this.layers; layer += 1) {
        points.push(this.place(layer, this.routes.expert(token, layer, rank)));
      }
      this.pen.globalAlpha = alpha * (rank ? 0.45 : 1);
      this.pen.strokeStyle = this.pen.fillStyle = this.ink.thread;
      this.pen.lineWidth = rank ? 1.2 : thin ? 1.2 : 2;
      this.pen.beginPath();
      points.forEach(({ x, y, height }, layer) => {
        const from = points[layer - 1];
        if (!from) this.pen.moveTo(x, y);
        else this.pen.bezierCurveTo(from.x, from.y + height * 0.55, x, y - height * 0.55, x, y);
      });
      this.pen.stroke();
      const size = Math.min(rank ? 2.6 : 3.8, this.pitch() / 3.2);
      for (const { x, y } of thin ? [] : points) {
        this.pen.beginPath();
        this.pen.arc(x, y, size, 0, 2 * Math.PI);
        this.pen.fill();
      }
    }
    this.pen.globalAlpha = 1;
  }
}

function inks(canvas) {
  const style = getComputedStyle(canvas);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const experts = Array.from({ length: 8 }, (_, n) => of(`expert-${n}`));
  return {
    ink: of("ink"), muted: of("muted"), cell: of("cell"), ember: of("ember"), flame: of("flame"),
    thread: of("thread"), font: style.fontFamily, experts,
  }; // prettier-ignore
}
