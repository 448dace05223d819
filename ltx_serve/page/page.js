// The page as a whole: what the parts do together, the token, the connection, the colours, and what is announced.

import { Composer, drawSeed } from "./composer.js";
import { at } from "./elements.js";
import { Gallery } from "./gallery.js";
import { Player } from "./player.js";
import { Unreachable, content, json, listen, setToken, token } from "./server.js";
import { Videos, isActive } from "./videos.js";
import { failureInWords, failureTitle, hasMedia, hasMore, stageInWords } from "./words.js";

const THEME_KEY = "ltx-theme";
const BACK_MS = 3000;
const TRY_AGAIN_MS = 3000;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Colours

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => localStorage.getItem(THEME_KEY) ?? (dark.matches ? "dark" : "light");

function showTheme() {
  document.documentElement.dataset.theme = theme();
  const other = theme() === "dark" ? "light" : "dark";
  at("theme-button").querySelector("span").textContent = `Switch to the ${other} colours`;
}

at("theme-button").addEventListener("click", () => {
  const other = theme() === "dark" ? "light" : "dark";
  // What the system has anyway is not kept, so that the page follows the system again.
  if (other === (dark.matches ? "dark" : "light")) localStorage.removeItem(THEME_KEY);
  else localStorage.setItem(THEME_KEY, other);
  showTheme();
});
dark.addEventListener("change", showTheme);
showTheme();

// Token and connection

let tokenGiven = null;

function askForToken(wasWrong) {
  at("token-title").textContent = wasWrong ? "The server refused this token" : "This server asks for a token";
  at("token-button").hidden = false;
  if (!at("token-dialog").open) at("token-dialog").showModal();
  return new Promise((resolve) => (tokenGiven = resolve));
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(at("token").value.trim());
  at("token").value = "";
  at("token-dialog").close();
  if (tokenGiven) tokenGiven(token());
  else videos.watch();
  tokenGiven = null;
});

at("token-button").hidden = !token();
at("token-button").addEventListener("click", () => {
  if (!tokenGiven) at("token-title").textContent = "Use another token";
  at("token-dialog").showModal();
});

let isConnected = true;

function showConnection(isThere) {
  if (isThere === isConnected) return;
  isConnected = isThere;
  at("connection").hidden = false;
  at("connection").dataset.there = isThere;
  at("connection").textContent = isThere ? "Connected again." : "The server does not answer. Trying again…";
  if (isThere) setTimeout(() => (at("connection").hidden = isConnected), BACK_MS);
}

listen({ tokenNeeded: askForToken, connection: showConnection });

// What is announced to those who do not see it: few things, and never each step

const announced = new Map(); // the last words about a video, by id

function announce(video, words) {
  if (announced.get(video.id) === words) return;
  announced.set(video.id, words);
  at("announcements").textContent = words;
}

function tellProgress(video) {
  const event = videos.events.get(video.id);
  if (video.status === "queued") announced.has(video.id) || announce(video, stageInWords(video));
  else if (event?.kind === "decoding") announce(video, "All steps are done. Decoding the frames.");
  else if (video.progress >= 50) announce(video, "Your video is half done.");
  else announce(video, "Your video is being made.");
}

function showTitle() {
  const running = videos.known.find((video) => videos.mine.has(video.id) && video.status === "in_progress");
  document.title = running ? `${running.progress} % · LTX-Video` : "LTX-Video";
}

// The parts together

const videos = new Videos(changed, () => gallery.show());

function changed(video) {
  if (videos.mine.has(video.id)) {
    if (isActive(video)) tellProgress(video);
    else ended(video);
  }
  gallery.refresh(video);
  showTitle();
}

function ended(video) {
  gallery.keep(video);
  const why = video.status === "failed" && `${failureTitle(video)}. ${failureInWords(video.error)}`;
  announce(video, why || "Your video is ready.");
}

/** Takes the person to what was just asked for, if it is out of sight. */
function goToMaking() {
  const { top } = at("making").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) at("making").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
}

const does = {
  open: (video) => player.open(video),
  again: (video) => videos.remix(video.id, { seed: drawSeed() }).then(goToMaking),
  remix: (video, prompt) => videos.remix(video.id, { prompt }).then(goToMaking),
  remove: (video) => videos.remove(video.id),
  cancel: (video) => videos.cancel(video.id),
  use: async (video) => composer.use(video, hasMore(video) && (await keptOf(video))),
};

/** What the form shows of a video whose picture, clip or other settings are used again. */
async function keptOf(video) {
  const words = hasMedia(video)
    ? { name: "The same picture or clip", use: "As it was given for that video." }
    : { name: "All its other settings", use: "Also those that this page does not show." };
  const thumbnail = video.status === "completed" ? content(video.id, "thumbnail") : Promise.resolve("");
  return { ...words, address: await thumbnail.catch(() => "") };
}

const gallery = new Gallery(videos, does);
const player = new Player(does, (video) => composer.models.get(video.model)?.defaults);
const composer = new Composer((form, source) => videos.create(form, source).then(goToMaking));

async function start() {
  videos.watch();
  for (;;) {
    try {
      return composer.setModels((await json("v1/models")).data);
    } catch (error) {
      if (!(error instanceof Unreachable)) composer.showProblem(error.message);
      await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS));
    }
  }
}

addEventListener("online", () => videos.watch());
document.addEventListener("visibilitychange", () => document.hidden || videos.watch());
start();
