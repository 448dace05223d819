// One video, large: its settings in words, and what can be done with it.

import { at } from "./elements.js";
import { release } from "./server.js";
import { videoElement } from "./gallery.js";
import { failureInWords, failureTitle, fileName, settingsInWords } from "./words.js";

export class Player {
  /** `does` has what the buttons do: again, use, remix and remove, each with a video. */
  constructor(does, defaultsOf) {
    this.defaultsOf = defaultsOf;
    this.dialog = at("player");
    this.dialog.addEventListener("close", () => this.clear());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    at("player-close").addEventListener("click", () => this.dialog.close());
    at("again").addEventListener("click", () => this.attempt(() => does.again(this.video)));
    at("use").addEventListener("click", () => (this.dialog.close(), does.use(this.video)));
    at("remix").addEventListener("click", () => this.ask("remix-form", "remix-prompt"));
    at("remix-leave").addEventListener("click", () => this.ask(null, "remix"));
    at("remix-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.attempt(() => does.remix(this.video, at("remix-prompt").value.trim()));
    });
    at("remix-prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("remix-form").requestSubmit();
    });
    at("delete").addEventListener("click", () => this.ask("delete-question", "delete-no"));
    at("delete-no").addEventListener("click", () => this.ask(null, "delete"));
    at("delete-yes").addEventListener("click", () => this.attempt(() => does.remove(this.video)));
  }

  open(video) {
    this.video = video;
    const failed = video.status === "failed";
    this.dialog.dataset.status = video.status;
    at("player-title").textContent = video.prompt;
    at("player-problem").textContent = failed ? `${failureTitle(video)}. ${failureInWords(video.error)}` : "";
    at("player-settings").replaceChildren(...settingsInWords(video, this.defaultsOf(video)).flatMap(pair));
    at("again").textContent = failed ? "Try again" : "Again with another seed";
    at("download").hidden = failed;
    at("remix-prompt").value = video.prompt;
    this.ask(null);
    this.dialog.showModal();
    if (!failed) this.play(video);
  }

  async play(video) {
    try {
      const player = await videoElement(video);
      if (this.video !== video) return release(player.src);
      this.address = player.src;
      at("player-stage").replaceChildren(player);
      at("download").href = player.src;
      at("download").download = fileName(video);
    } catch (error) {
      at("player-problem").textContent = error.message;
    }
  }

  clear() {
    at("player-stage").replaceChildren();
    release(this.address);
    this.video = this.address = undefined;
  }

  /** Shows one of the questions in place of the buttons, or the buttons again, and goes to a field. */
  ask(question, field) {
    for (const id of ["remix-form", "delete-question"]) at(id).hidden = id !== question;
    at("player-actions").hidden = question !== null;
    if (field) at(field).focus();
  }

  async attempt(action) {
    at("player-problem").textContent = "";
    try {
      await action();
      this.dialog.close();
    } catch (error) {
      at("player-problem").textContent = error.message;
    }
  }
}

function pair([name, value]) {
  const [term, description] = ["dt", "dd"].map((tag) => document.createElement(tag));
  term.textContent = name;
  description.textContent = value;
  return [term, description];
}
