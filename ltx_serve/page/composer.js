// The form: what a video shall show, with choices that the model can make.

import { at, copy } from "./elements.js";
import { release } from "./server.js";
import { lengthInWords, sizeInWords } from "./words.js";

const DRAFT_KEY = "ltx-draft";
const TYPED = ["negative_prompt", "guidance_scale", "steps", "fps"];

export const drawSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

const shapeOf = (width, height) => (width > height ? "landscape" : width < height ? "portrait" : "square");
const numbers = (size) => size.split("x").map(Number);
const ratio = (size) => numbers(size)[0] / numbers(size)[1];
const fromWideToTall = (left, right) => ratio(right) - ratio(left);

export class Composer {
  /** `submit(form, source)` sends a FormData; `source` is the id of the video whose picture or clip is used again. */
  constructor(submit) {
    this.submit = submit;
    this.form = at("composer");
    this.models = new Map();
    this.file = null;
    this.source = null;
    this.shape = null; // of the picture or clip, as [width, height]
    this.listenToForm();
    this.listenToMedia();
  }

  listenToForm() {
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.send()));
    this.form.addEventListener("input", () => (this.show(), this.keepDraft()));
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), this.send());
    });
    at("more").addEventListener("toggle", () => this.show());
    at("model").addEventListener("change", () => {
      if (this.source) this.removeMedia(); // only the model that made a video makes variations of it
      this.useModel();
    });
    at("dice").addEventListener("click", () => ((at("seed").value = drawSeed()), this.keepDraft()));
    at("submit-key").textContent = /Mac|iP/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵";
  }

  // Models, sizes and lengths

  setModels(models) {
    this.models = new Map(models.map((model) => [model.id, model]));
    at("model").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    at("model-field").hidden = models.length < 2;
    const draft = JSON.parse(sessionStorage.getItem(DRAFT_KEY) ?? "{}");
    if (this.models.has(draft.model)) at("model").value = draft.model;
    this.useModel();
    this.fill(this.models.has(draft.model) ? draft : { prompt: draft.prompt });
  }

  get model() {
    return this.models.get(at("model").value);
  }

  /** Shows the choices of the chosen model, and keeps those that it shares with the one before. */
  useModel() {
    const { sizes, defaults, lengths, takes_guidance: guidance } = this.model;
    const size = this.size ?? `${defaults.width}x${defaults.height}`;
    const frames = this.frames ?? defaults.num_frames;
    at("sizes").replaceChildren(...[...sizes].sort(fromWideToTall).map(sizeChoice));
    this.chooseSize(sizes.includes(size) ? size : `${defaults.width}x${defaults.height}`);
    this.lengths = lengths;
    at("length").max = lengths.length - 1;
    this.chooseFrames(frames);
    for (const field of this.form.querySelectorAll("[data-guidance]")) field.hidden = !guidance;
    at("fps").placeholder = defaults.fps;
    at("negative_prompt").placeholder = defaults.negative_prompt ?? "";
    this.show();
  }

  get size() {
    return this.form.elements.size?.value || undefined;
  }

  chooseSize(size) {
    for (const choice of at("sizes").querySelectorAll("input")) choice.checked = choice.value === size;
  }

  hasSize(size) {
    return [...at("sizes").querySelectorAll("input")].some((choice) => choice.value === size);
  }

  get frames() {
    return this.lengths?.[at("length").value]?.num_frames;
  }

  addLength(frames) {
    this.lengths = [...this.lengths, { num_frames: frames }].sort((left, right) => left.num_frames - right.num_frames);
    at("length").max = this.lengths.length - 1;
  }

  /** Chooses the length nearest to a number of frames. */
  chooseFrames(frames) {
    const distances = this.lengths.map((length) => Math.abs(length.num_frames - frames));
    at("length").value = distances.indexOf(Math.min(...distances));
  }

  get fps() {
    return Number(at("fps").value) || this.model.defaults.fps;
  }

  show() {
    for (const area of this.form.querySelectorAll("textarea")) {
      area.style.height = "auto";
      area.style.height = area.scrollHeight ? `${area.scrollHeight + 2}px` : ""; // 0 while it is folded away
    }
    if (!this.model) return;
    const words = `${lengthInWords(this.frames, this.fps)}`;
    at("size-words").textContent = `${sizeInWords(this.size)}, ${shapeOf(...numbers(this.size))}`;
    at("length-words").textContent = `${words}, ${this.frames} frames`;
    at("length").setAttribute("aria-valuetext", `${words}, ${this.frames} frames`);
    this.showShapeHint();
  }

  // Settings

  keepDraft() {
    const draft = { model: at("model").value, prompt: at("prompt").value, seed: at("seed").value };
    for (const name of TYPED) draft[name] = at(name).value;
    sessionStorage.setItem(DRAFT_KEY, JSON.stringify({ ...draft, size: this.size, num_frames: this.frames }));
  }

  /** Fills in the form; a size or length that is not among the choices, as other clients may ask for, joins them. */
  fill(settings) {
    for (const name of ["prompt", "seed", ...TYPED]) at(name).value = settings[name] ?? "";
    const { size, num_frames: frames } = settings;
    if (size && !this.hasSize(size)) at("sizes").append(sizeChoice(size));
    if (size) this.chooseSize(size);
    if (frames && !this.lengths.some((length) => length.num_frames === frames)) this.addLength(frames);
    if (frames) this.chooseFrames(frames);
    at("more").open ||= TYPED.some((name) => at(name).value);
    this.show();
  }

  /** Takes over the settings of a video; with `kept`, words and a picture, also what the form does not hold of it. */
  use(video, kept) {
    if (this.models.has(video.model)) at("model").value = video.model;
    this.useModel();
    const { defaults } = this.model;
    const settings = { ...video.request, size: video.size };
    for (const name of ["fps", "negative_prompt"]) if (settings[name] === defaults[name]) settings[name] = "";
    this.fill(settings);
    this.removeMedia();
    if (kept) this.showMedia({ source: video.id, ...kept });
    this.keepDraft();
    at("prompt").focus();
  }

  // A picture or clip

  listenToMedia() {
    at("file").addEventListener("change", () => this.takeFile([...at("file").files]));
    at("media-remove").addEventListener("click", () => (this.removeMedia(), at("file").focus()));
    at("shape-hint").querySelector("button").addEventListener("click", () => {
      this.chooseSize(this.nearestSize());
      this.show();
    });
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      // Programs that copy text often copy a picture of it, too.
      if (files.length && !event.clipboardData.types.includes("text/plain")) (event.preventDefault(), this.takeFile(files));
    });
    const over = (event) => {
      if (!event.dataTransfer.types.includes("Files") || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      at("drop").hidden = false;
    };
    document.addEventListener("dragenter", over);
    document.addEventListener("dragover", over);
    document.addEventListener("dragleave", (event) => (at("drop").hidden = !event.relatedTarget || at("drop").hidden));
    document.addEventListener("drop", (event) => {
      if (at("drop").hidden) return;
      event.preventDefault();
      at("drop").hidden = true;
      this.takeFile([...event.dataTransfer.files]);
    });
  }

  takeFile([file, ...others]) {
    if (!file) return;
    if (!mayBeMedia(file)) return this.showProblem(`${file.name} is neither a picture nor a clip.`);
    this.showMedia({ file, name: file.name, address: URL.createObjectURL(file) });
    if (others.length) this.showProblem(`A video begins with one picture or clip: only ${file.name} is used.`);
  }

  showMedia({ file = null, source = null, name, use, address }) {
    this.removeMedia();
    this.showProblem("");
    [this.file, this.source, this.address] = [file, source, address];
    const isClip = file?.type.startsWith("video/");
    const preview = document.createElement(isClip ? "video" : "img");
    preview.alt = "";
    preview.muted = true;
    preview.addEventListener(isClip ? "loadedmetadata" : "load", () => {
      if (file) this.shape = [preview.videoWidth ?? preview.naturalWidth, preview.videoHeight ?? preview.naturalHeight];
      this.show();
    });
    preview.addEventListener("error", () => preview.remove()); // what the browser cannot show, the server may read
    preview.src = address;
    at("media-preview").replaceChildren(preview);
    at("media-name").textContent = name;
    const clip = "The video begins with this clip and goes on from its end.";
    at("media-use").textContent = use ?? (isClip ? clip : "It becomes the first frame.");
    at("media-choose").hidden = true;
    at("media-shown").hidden = false;
  }

  removeMedia() {
    release(this.address);
    [this.file, this.source, this.address, this.shape] = [null, null, null, null];
    at("file").value = "";
    at("media-preview").replaceChildren();
    at("media-choose").hidden = false;
    at("media-shown").hidden = true;
    this.show();
  }

  /** The size that cuts the least off the picture. */
  nearestSize() {
    const wanted = this.shape[0] / this.shape[1];
    const distance = (size) => Math.abs(Math.log(ratio(size) / wanted));
    return this.model.sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best), this.size);
  }

  showShapeHint() {
    const hint = at("shape-hint");
    const nearest = this.shape ? this.nearestSize() : this.size;
    hint.hidden = !this.shape || shapeOf(...numbers(nearest)) === shapeOf(...numbers(this.size));
    if (hint.hidden) return;
    const cut = this.shape[0] / this.shape[1] > ratio(this.size) ? "sides" : "top and bottom";
    hint.querySelector("span").textContent = `Its ${cut} would be cut off in this size.`;
    hint.querySelector("button").textContent = `Take ${sizeInWords(nearest)}`;
  }

  // Sending

  /** What is asked for. A field that is left blank has the model's own value, and so has one that it does not use. */
  request() {
    const form = new FormData();
    form.set("model", this.model.id);
    form.set("prompt", at("prompt").value.trim());
    form.set("size", this.size);
    form.set("num_frames", this.frames);
    for (const name of ["seed", ...TYPED]) if (!at(name).closest("[hidden]")) form.set(name, at(name).value.trim());
    if (this.file) form.set("input_reference", this.file);
    return form;
  }

  async send() {
    if (this.sending || !this.model) return;
    this.showProblem("");
    if (!at("prompt").value.trim()) return this.showProblem("Please say what the video should show.", "prompt");
    if (!/^\d*$/.test(at("seed").value.trim())) return this.showProblem("A seed is a whole number.", "seed");
    this.sending = true;
    at("submit").setAttribute("aria-disabled", "true");
    try {
      await this.submit(this.request(), this.source);
    } catch (error) {
      this.showProblem(error.message, error.param);
    } finally {
      this.sending = false;
      at("submit").removeAttribute("aria-disabled");
    }
  }

  /** Shows what is wrong, and takes the person to the field, if it is one of the form. */
  showProblem(message, name) {
    at("problem").textContent = message;
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    const field = message && name && this.form.elements[name];
    if (!field?.focus) return;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

// A browser does not know the type of every file; the server looks at what is in it.
const mayBeMedia = (file) => !file.type || /^(image|video)\//.test(file.type);

function sizeChoice(size) {
  const choice = copy("size-template");
  const [width, height] = numbers(size);
  const input = choice.querySelector("input");
  input.value = size;
  input.setAttribute("aria-label", `${sizeInWords(size)}, ${shapeOf(width, height)}`);
  const rectangle = choice.querySelector("i");
  const scale = 20 / Math.sqrt(width * height); // equal areas
  rectangle.style.width = `${width * scale}px`;
  rectangle.style.height = `${height * scale}px`;
  choice.title = sizeInWords(size);
  return choice;
}
