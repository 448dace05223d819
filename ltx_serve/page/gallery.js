// What is being made, and all videos: cards that are made once for each video and then kept up to date.

import { at, copy } from "./elements.js";
import { content, release } from "./server.js";
import { factsInWords, failureInWords, stageInWords, timeInWords } from "./words.js";
import { isActive } from "./videos.js";

const MOST_WAITING = 6; // of other people; more are counted

function giveShape(element, video) {
  const [width, height] = video.size.split("x").map(Number);
  element.style.setProperty("--ratio", width / height);
}

function button(words, pressed, kind = "") {
  const element = document.createElement("button");
  element.type = "button";
  element.className = kind;
  element.textContent = words;
  element.addEventListener("click", pressed);
  return element;
}

/** Makes a list hold these elements. Those that are in place are not touched, so focus stays and videos play on. */
function arrange(list, elements) {
  for (const child of [...list.children]) if (!elements.includes(child)) child.remove();
  elements.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
}

export class Gallery {
  /** `does` has what the buttons do: open, cancel, again and use, each with a video. */
  constructor(videos, does) {
    this.videos = videos;
    this.does = does;
    this.cards = new Map(); // what is being made, or was while we watched
    this.tiles = new Map();
    this.ended = new Set(); // videos of this tab that have ended, and are still shown where they were made
    at("show-more").addEventListener("click", () => videos.more());
    // Thumbnails are asked for when they come near. (With a token they are no addresses, so loading="lazy" cannot.)
    this.near = new IntersectionObserver((entries) => this.load(entries), { rootMargin: "400px" });
  }

  /** Keeps a video of this tab that has just ended at its place, in the stead of the one before. */
  keep(video) {
    for (const id of this.ended) this.forget(id);
    this.ended.add(video.id);
  }

  forget(id) {
    this.ended.delete(id);
    release(this.cards.get(id)?.address);
    this.cards.delete(id);
  }

  show() {
    const { known, mine } = this.videos;
    const active = this.videos.active();
    const isShown = (video, index) => mine.has(video.id) || video.status === "in_progress" || index < MOST_WAITING;
    const shown = active.filter(isShown);
    const ended = known.filter((video) => this.ended.has(video.id));
    for (const id of this.cards.keys()) {
      if (![...shown, ...ended].some((video) => video.id === id)) this.forget(id);
    }
    arrange(at("making-list"), [...ended, ...shown].map((video) => this.card(video)));
    const rest = active.length - shown.length;
    at("waiting").hidden = rest <= 0;
    at("waiting").textContent = `${rest} more ${rest === 1 ? "is" : "are"} waiting.`;
    const finished = known.filter((video) => !isActive(video) && !this.ended.has(video.id));
    for (const [id, tile] of this.tiles) {
      if (finished.some((video) => video.id === id)) continue;
      release(tile.address);
      this.tiles.delete(id);
    }
    arrange(at("gallery"), finished.map((video) => this.tile(video)));
    at("empty").hidden = known.length > 0;
    at("all").hidden = known.length > 0 && finished.length === 0;
    at("show-more").hidden = !this.videos.hasMore;
  }

  // What is being made

  card(video) {
    let card = this.cards.get(video.id);
    if (!card) {
      card = copy("making-template");
      giveShape(card.querySelector(".frame"), video);
      card.querySelector(".prompt").textContent = video.prompt;
      this.cards.set(video.id, card);
    }
    this.refresh(video, card);
    return card;
  }

  refresh(video, card = this.cards.get(video.id)) {
    if (!card) return;
    const stage = stageInWords(video, this.videos.events.get(video.id));
    card.querySelector(".stage").textContent = stage;
    const progress = card.querySelector("progress");
    progress.value = video.progress;
    progress.setAttribute("aria-label", `Progress of ${video.prompt}`);
    progress.setAttribute("aria-valuetext", `${video.progress} %, ${stage}`);
    const left = this.videos.secondsLeft(video);
    card.querySelector(".percent").textContent = video.status === "in_progress" ? `${video.progress} %` : "";
    card.querySelector(".left").textContent = left === null ? "" : `${timeInWords(left)} left`;
    const picture = this.videos.pictures.get(video.id);
    const preview = card.querySelector(".preview");
    if (picture && preview && preview.src !== picture) [preview.src, preview.hidden] = [picture, false];
    if (card.dataset.status !== video.status) this.changeStatus(video, card);
  }

  changeStatus(video, card) {
    card.dataset.status = video.status;
    const actions = card.querySelector(".actions");
    const hadFocus = actions.contains(document.activeElement);
    actions.replaceChildren(...this.buttons(video, card));
    if (hadFocus) actions.firstElementChild.focus();
    const facts = card.querySelector(".facts");
    facts.textContent = "";
    if (video.status === "failed") facts.textContent = failureInWords(video.error);
    if (video.status !== "completed") return;
    facts.textContent = `${factsInWords(video)}, seed ${video.seed}`;
    this.attempt(card, () => this.play(video, card));
  }

  buttons(video, card) {
    const does = (name) => () => this.attempt(card, async () => this.does[name](video));
    if (isActive(video)) return [button("Cancel", does("cancel"))];
    const putAway = button("Put away", () => (this.forget(video.id), this.show(), at("videos").focus()), "quiet");
    if (video.status === "failed") return [button("Use these settings", does("use")), putAway];
    return [button("Again with another seed", does("again")), button("More", does("open")), putAway];
  }

  async attempt(card, action) {
    const problem = card.querySelector(".problem");
    problem.textContent = "";
    card.inert = true; // a second press does nothing
    await action().catch((error) => (problem.textContent = error.message));
    card.inert = false;
  }

  /** Replaces the preview by the video. */
  async play(video, card) {
    const player = await videoElement(video);
    if (this.cards.get(video.id) !== card) return release(player.src);
    card.address = player.src;
    card.querySelector(".frame").replaceChildren(player);
  }

  // All videos

  tile(video) {
    if (this.tiles.has(video.id)) return this.tiles.get(video.id);
    const tile = copy("tile-template");
    giveShape(tile, video);
    tile.dataset.id = video.id;
    tile.dataset.status = video.status;
    tile.querySelector(".prompt").textContent = video.prompt;
    tile.querySelector(".facts").textContent = factsInWords(video);
    tile.querySelector("button").addEventListener("click", () => this.does.open(this.videos.get(video.id)));
    if (video.status === "failed") tile.querySelector(".failure").textContent = failureInWords(video.error);
    else this.near.observe(tile);
    this.tiles.set(video.id, tile);
    return tile;
  }

  load(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.near.unobserve(target);
      content(target.dataset.id, "thumbnail").then((address) => {
        target.address = address;
        const picture = target.querySelector("img");
        picture.addEventListener("load", () => (picture.hidden = false));
        picture.src = address;
      }, () => this.near.observe(target));
    }
  }
}

/** A player of a video, which plays by itself unless the person wants less motion. */
export async function videoElement(video) {
  const address = await content(video.id, "video");
  const player = document.createElement("video");
  [player.width, player.height] = video.size.split("x");
  Object.assign(player, { controls: true, loop: true, muted: true, playsInline: true, src: address });
  player.autoplay = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  player.setAttribute("aria-label", video.prompt);
  return player;
}
