// Whether the server is there.

import { byId } from "./dom.js";
import { get } from "./api.js";

const CALM = 30_000; // between two looks, while all is well
const EAGER = 3_000;

export class Link {
  /** Calls `found(model)` when the server is reached first, and after it was lost. */
  constructor(found, refused) {
    this.found = found;
    this.refused = refused;
    this.up = null;
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    addEventListener("online", () => this.look());
  }

  async look() {
    clearTimeout(this.timer);
    try {
      if (this.up) await get("/health");
      else {
        const model = (await get("/v1/models")).data[0];
        this.show(true, model.id);
        this.found(model);
      }
    } catch (error) {
      if (error.status === 401) this.locked(error);
      else this.lost(error.message);
    }
    this.timer = setTimeout(() => this.look(), this.up === false ? EAGER : CALM);
  }

  lost(why) {
    this.show(false, "Not reached", `${why} Trying again …`);
  }

  locked(error) {
    this.show(null, "Needs a key", "");
    this.refused(error);
  }

  show(up, text, notice = "") {
    this.up = up;
    const place = byId("server");
    place.dataset.up = String(up);
    place.lastElementChild.textContent = text;
    const bar = byId("notice");
    bar.hidden = !notice;
    if (bar.textContent !== notice) bar.textContent = notice;
  }
}
