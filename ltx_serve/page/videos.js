// The videos that this page knows, kept up to date: the list is asked for every few seconds, and what is being made is
// also followed as a stream of events. Without streams (a proxy may hold them back) the list alone shows the progress.

import { ServerError, Unreachable, call, follow, json, post } from "./server.js";

const PAGE = 24;
const BUSY_MS = 2000;
const IDLE_MS = 5000;
const HIDDEN_MS = 15000;
const MOST_WAIT_MS = 10000;
const MOST_STREAMS = 2; // a browser opens few connections to one server
const MOST_OLD = 8; // unfinished videos beyond the newest page, asked for one by one
const LAST_EVENTS = ["completed", "failed", "deleted"];
const RECENT_S = 30;
const MINE_KEY = "ltx-mine";

export const isActive = (video) => video.status === "queued" || video.status === "in_progress";
const ids = (videos) => new Set(videos.map((video) => video.id));
const path = (id, more = "") => `v1/videos/${encodeURIComponent(id)}${more}`;

export class Videos {
  /** `changed(video)` is called for every video that is new or differs, `listed()` when the list may have changed. */
  constructor(changed, listed) {
    this.changed = changed;
    this.listed = listed;
    this.known = []; // newest first
    this.hasMore = false; // whether the server has videos older than `oldest`, the last that was listed
    this.oldest = undefined;
    this.removed = new Set(); // a list that was asked for before may still hold them
    this.mine = new Set(JSON.parse(sessionStorage.getItem(MINE_KEY) ?? "[]")); // asked for in this tab, unfinished
    this.events = new Map(); // last event, by id
    this.pictures = new Map(); // last preview, by id
    this.seen = new Map(); // when which progress was seen, by id
    this.opened = performance.now() / 1000;
    this.streams = new Map(); // what ends the stream, by id
    this.timer = 0;
    this.failures = 0;
  }

  get = (id) => this.known.find((video) => video.id === id);
  active = () => this.known.filter(isActive).reverse(); // in the order in which they are made

  /** Asks for the newest videos now, and again from time to time. */
  async watch() {
    clearTimeout(this.timer);
    try {
      await this.refresh();
      this.failures = 0;
    } catch (error) {
      if (!(error instanceof Unreachable)) console.warn(error.message);
      this.failures += 1;
    }
    clearTimeout(this.timer); // another call may have come by
    this.timer = setTimeout(() => this.watch(), this.wait());
  }

  wait() {
    if (this.failures) return Math.min(1000 * 2 ** (this.failures - 1), MOST_WAIT_MS);
    if (this.active().length) return BUSY_MS;
    return document.hidden ? HIDDEN_MS : IDLE_MS;
  }

  async refresh() {
    const knownThen = this.known.slice();
    const page = await json(`v1/videos?limit=${PAGE}&order=desc`);
    const listed = ids(page.data);
    const end = page.has_more ? knownThen.findIndex((video) => video.id === page.data.at(-1).id) : -1;
    // What should be on this page and is not has been deleted. Without an overlap, what is known is too old to tell.
    const older = end < 0 ? [] : knownThen.slice(end + 1);
    if (end < 0) [this.hasMore, this.oldest] = [page.has_more, page.data.at(-1)?.id];
    const fresh = await this.unfinished([...older.filter(isActive).map((video) => video.id), ...this.mine], listed);
    const before = ids(knownThen);
    const added = this.known.filter((video) => !before.has(video.id) && !listed.has(video.id)); // while we waited
    const kept = older.filter((video) => !fresh.has(video.id));
    this.replace([...added, ...page.data, ...kept, ...[...fresh.values()].filter(Boolean)]);
  }

  /** Returns what unfinished videos beyond the newest page have become, by id; null for those that are gone. */
  async unfinished(ids, listed) {
    const wanted = [...new Set(ids)].filter((id) => !listed.has(id)).slice(0, MOST_OLD);
    const answers = wanted.map((id) =>
      json(path(id)).catch((error) => {
        if (error.status !== 404) throw error;
        this.mine.delete(id);
        return null;
      }),
    );
    return new Map((await Promise.all(answers)).map((video, index) => [wanted[index], video]));
  }

  async more() {
    try {
      const page = await json(`v1/videos?limit=${PAGE}&order=desc&after=${encodeURIComponent(this.oldest)}`);
      [this.hasMore, this.oldest] = [page.has_more, page.data.at(-1)?.id ?? this.oldest];
      const listed = ids(page.data);
      this.replace([...this.known.filter((video) => !listed.has(video.id)), ...page.data]);
    } catch (error) {
      if (error instanceof ServerError) this.known = []; // the oldest was deleted meanwhile: from the start
      this.watch();
    }
  }

  replace(videos) {
    const before = new Map(this.known.map((video) => [video.id, video]));
    const unique = new Map(videos.map((video) => [video.id, this.newer(before.get(video.id), video)]));
    for (const id of this.removed) unique.delete(id);
    this.known = [...unique.values()].sort((one, other) => other.created_at - one.created_at);
    for (const video of this.known) {
      const old = before.get(video.id);
      if (!old || JSON.stringify(old) !== JSON.stringify(video)) this.tell(video);
    }
    this.listed();
    this.followSome();
  }

  /** The newer of what was known and what is listed: answers overtake each other, and a stream is ahead of the list. */
  newer(old, listed) {
    if (!old || old.status !== listed.status) return old && !isActive(old) ? old : listed;
    return this.streams.has(old.id) ? { ...listed, progress: old.progress } : listed;
  }

  tell(video) {
    this.changed(video);
    if (!isActive(video)) {
      this.mine.delete(video.id);
      this.streams.get(video.id)?.abort();
      for (const seen of [this.events, this.pictures, this.seen]) seen.delete(video.id);
    }
    sessionStorage.setItem(MINE_KEY, JSON.stringify([...this.mine]));
  }

  update(video) {
    const before = this.get(video.id);
    if (!before || (isActive(video) && !isActive(before))) return;
    this.known = this.known.map((one) => (one.id === video.id ? video : one));
    this.tell(video);
    if (before.status !== video.status) this.listed();
  }

  /** Takes in a video that this tab has just asked for. */
  add(video) {
    this.mine.add(video.id);
    this.replace([video, ...this.known.filter((one) => one.id !== video.id)]);
    this.watch();
    return video;
  }

  /** Asks for a video; with a source, for a variation of that video, which has its picture or clip. */
  async create(form, source) {
    return this.add(await json(source ? path(source, "/remix") : "v1/videos", { method: "POST", body: form }));
  }

  remix = async (id, fields) => this.add(await post(path(id, "/remix"), fields));
  cancel = async (id) => this.update(await post(path(id, "/cancel"), {}));

  async remove(id) {
    await call(path(id), { method: "DELETE" });
    this.streams.get(id)?.abort();
    this.mine.delete(id);
    if (id === this.oldest) this.oldest = this.known[this.known.findIndex((video) => video.id === id) - 1]?.id;
    this.removed.add(id);
    this.replace(this.known);
  }

  followSome() {
    const running = this.known.filter((video) => video.status === "in_progress" && !this.streams.has(video.id));
    running.sort((one, other) => this.mine.has(other.id) - this.mine.has(one.id));
    for (const video of running.slice(0, Math.max(0, MOST_STREAMS - this.streams.size))) this.followOne(video.id);
  }

  async followOne(id) {
    const end = new AbortController();
    this.streams.set(id, end);
    try {
      await follow(path(id, "/events"), (event) => this.hear(id, event), end.signal);
      if (LAST_EVENTS.includes(this.events.get(id)?.kind)) this.watch();
    } catch {
      // The next look at the list opens the stream again, if the video is still being made.
    }
    this.streams.delete(id);
  }

  hear(id, event) {
    const video = this.get(id);
    if (!video) return;
    this.events.set(id, event);
    if (event.preview) this.pictures.set(id, event.preview);
    if (event.status === "in_progress") this.update({ ...video, status: event.status, progress: event.progress });
  }

  /** Estimates the seconds that are left from the progress of late; null if it is too early to tell. */
  secondsLeft(video) {
    if (video.status !== "in_progress") return null;
    const now = performance.now() / 1000;
    const { progress } = video;
    let seen = this.seen.get(video.id) ?? [{ progress }];
    if (progress < seen.at(-1).progress) seen = [{ progress }]; // begun anew
    if (progress > seen.at(-1).progress) seen.push({ now, progress });
    // Loading comes before the first change, and stages differ in how well their work is known: what counts is the last
    // half minute, or fifth of the time.
    const since = now - Math.max(RECENT_S, (now - this.opened) / 5);
    while (seen.length > 1 && (seen[0].now === undefined || (seen.length > 2 && seen[1].now < since))) seen.shift();
    this.seen.set(video.id, seen);
    const [first, last] = [seen[0], seen.at(-1)];
    if (last.progress - first.progress < 4 || last.now - first.now < 3) return null;
    const secondsEach = (last.now - first.now) / (last.progress - first.progress);
    return Math.max(0, (100 - progress) * secondsEach - (now - last.now));
  }
}
