// Numbers and states in words. Nothing here touches the page or the network.

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export const sizeInWords = (size) => size.replace("x", " × ");

export const lengthInWords = (frames, fps) => `${number.format(frames / fps)} s`;

export const factsInWords = (video) => `${sizeInWords(video.size)}, ${lengthInWords(video.num_frames, video.fps)}`;

const dateInWords = (seconds) => day.format(new Date(seconds * 1000));

/** "about 20 s", "about 3 min", "about 2 h": no more exact than an estimate is. */
export function timeInWords(seconds) {
  if (seconds < 55) return `about ${Math.max(5, Math.ceil(seconds / 5) * 5)} s`;
  if (seconds < 3600) return `about ${Math.max(1, Math.round(seconds / 60))} min`;
  return `about ${number.format(seconds / 3600)} h`;
}

/** What a video is going through, from the video and its last event (which may be missing). */
export function stageInWords(video, event) {
  if (video.status === "queued") {
    return video.position > 1 ? `Waiting: number ${video.position} in line` : "Waiting: next in line";
  }
  if (video.status === "completed") return "Ready";
  if (video.status === "failed") return failureTitle(video);
  if (event?.kind === "step") {
    const pass = event.passes > 1 ? `, pass ${event.pass} of ${event.passes}` : "";
    return `Step ${event.step} of ${event.steps}${pass}`;
  }
  if (event?.kind === "decoding") return `Decoding frame ${event.frame} of ${event.frames}`;
  return video.progress > 0 ? "In the making" : "Reading your prompt";
}

const FAILURES = {
  cancelled: "It was stopped before it was done.",
  timed_out: "It took longer than this server allows. A smaller size or a shorter length takes less time.",
  worker_lost: "The process that made it ended without saying why, each time that it was tried.",
  out_of_memory: "It needs more memory than this machine has. Try a smaller size or a shorter length.",
  no_space: "The disk of the server is full. Deleting videos makes room.",
};

export const failureTitle = (video) => (video.error?.code === "cancelled" ? "Stopped" : "It did not work");

/** Why a video failed: a sentence of ours for each code, and what the server says beside it. */
export function failureInWords(error) {
  const { code, message } = error ?? {};
  if (code === "cancelled") return FAILURES.cancelled;
  return [FAILURES[code], message].filter(Boolean).join(" ") || "The server does not say why.";
}

const SIZES = ["height", "width", "num_frames", "fps"];
const IN_FORM = ["prompt", "negative_prompt", ...SIZES, "seed", "steps", "guidance_scale"];
const MEDIA = ["conditions", "video"];

export const hasMedia = ({ request }) => MEDIA.some((name) => request[name]);

/** Whether a video was asked for with more than this page's form holds: media, or settings by another client. */
export const hasMore = ({ request }) => Object.keys(request).some((name) => !IN_FORM.includes(name));

/** The settings of a video as pairs of a name and a value; `defaults` are those of its model, if it is still there. */
export function settingsInWords(video, defaults) {
  const { request } = video;
  const seconds = Object.values(video.stages).reduce((sum, stage) => sum + stage, 0);
  const length = lengthInWords(video.num_frames, video.fps);
  const date = dateInWords(video.completed_at ?? video.created_at);
  const others = Object.entries(request).filter(([name]) => !IN_FORM.includes(name) && !MEDIA.includes(name));
  const pairs = [
    ["Size", sizeInWords(video.size)],
    ["Length", `${length}, ${video.num_frames} frames at ${number.format(video.fps)} a second`],
    ["Seed", String(video.seed)],
    ["Begins with", hasMedia(video) ? "a picture or clip" : ""],
    ["Not to show", request.negative_prompt === defaults?.negative_prompt ? "" : request.negative_prompt],
    ["Steps", request.steps],
    ["Guidance", request.guidance_scale],
    ["Also", others.map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ")],
    ["Model", video.model],
    ["Made", seconds ? `${date}, in ${number.format(seconds)} s` : date],
  ];
  return pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
}

/** A name for the downloaded file: the beginning of the prompt, and the seed. */
export function fileName(video) {
  const words = video.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-+|-+$/g, "");
  return `${words || "video"}-${video.seed}.mp4`;
}
