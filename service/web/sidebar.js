/** The list of conversations: opens one, begins another about the same clip, or deletes one. */

import * as api from "./api.js";
import { showProblem } from "./problem.js";
import * as titles from "./titles.js";
import { day } from "./wording.js";

/**
 * @param {object} options
 * @param {(session: object) => void} options.onAgain
 * @param {(id: string) => void} options.onDeleted
 * @param {() => boolean} options.areModelsNamed whether a conversation is shown with the name of its model
 */
export function createSidebar({ onAgain, onDeleted, areModelsNamed }) {
  const [panel, list, more, problem, toggle, shade] =
    ["sidebar", "sessions", "more-sessions", "sidebar-problem", "sidebar-toggle", "shade"]
      .map((id) => document.getElementById(id));
  const shape = document.getElementById("session-template");
  const videos = new Map(); // by id; requested again while they are being prepared
  let sessions = [];
  let hasMore = false;
  let asked = 0;
  let drawn = ""; // a fingerprint of the list on the page
  let pictures = new AbortController(); // releases the pictures of the list

  toggle.onclick = () => setOpen(!panel.hasAttribute("data-open"));
  shade.onclick = () => setOpen(false);
  more.onclick = () => load(sessions.at(-1)?.id);
  matchMedia("(width >= 1100px)").addEventListener("change", () => setOpen(false)); // on a wide page the list is a column
  document.addEventListener("visibilitychange", () => document.hidden || load()); // another tab may have changed the list
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !panel.hasAttribute("data-open")) return;
    event.preventDefault(); // Escape closes the drawer and does not stop an answer
    setOpen(false);
  });

  /** On a narrow page the list is a drawer; while it is open, the page below it cannot take the focus. */
  function setOpen(isOpen) {
    if (isOpen === panel.hasAttribute("data-open")) return;
    panel.toggleAttribute("data-open", isOpen);
    toggle.setAttribute("aria-expanded", String(isOpen));
    shade.hidden = !isOpen;
    for (const main of document.querySelectorAll("main")) main.inert = isOpen;
    if (isOpen) panel.querySelector("a, button:not([hidden])")?.focus();
    else toggle.focus();
  }

  /** Loads the list again, or the page of sessions after `after`. */
  async function load(after = null) {
    const number = ++asked;
    try {
      const page = await api.sessions(after);
      await Promise.all([...new Set(page.data.flatMap((session) => session.video_ids))].map(loadVideo));
      if (number !== asked) return; // a later request is in progress
      sessions = after ? [...sessions, ...page.data] : page.data;
      hasMore = page.has_more;
      problem.hidden = true;
      show();
    } catch (error) {
      if (number !== asked) return;
      if (error.status === 401) clear(); // hide the conversations of the previous key
      else showProblem(problem, error, { label: "Try again", action: () => load(after) });
    }
  }

  async function loadVideo(id) {
    if (["ready", "failed"].includes(videos.get(id)?.status)) return;
    try {
      videos.set(id, await api.video(id));
    } catch (error) {
      if (error.status !== 404) throw error;
      videos.set(id, { id, filename: "A deleted video", status: "failed" });
    }
  }

  function clear() {
    sessions = [];
    hasMore = false;
    videos.clear();
    show();
  }

  function show() {
    more.hidden = !hasMore;
    toggle.hidden = panel.hidden = sessions.length === 0;
    document.body.toggleAttribute("data-sidebar", sessions.length > 0);
    const wanted = JSON.stringify([areModelsNamed(), ...sessions.map(({ id, video_ids: ids }) => [id, titles.recall(id), ids.map((v) => videos.get(v)?.status)])]);
    if (wanted !== drawn) draw(); // an unchanged list is not redrawn, so that it keeps the focus
    drawn = wanted;
    mark();
  }

  function draw() {
    pictures.abort();
    pictures = new AbortController();
    list.replaceChildren(...sessions.map(row));
  }

  function row(session) {
    const item = shape.content.cloneNode(true).firstElementChild;
    const [link, picture, name, about] = ["a", "img", ".name", ".about"].map((selector) => item.querySelector(selector));
    const [again, remove] = item.querySelectorAll("button");
    const clips = session.video_ids.map((id) => videos.get(id));
    const files = clips.map((clip) => clip.filename).join(", ");
    const title = titles.recall(session.id) ?? (files || "A conversation without a video");
    const begun = day(new Date(session.created_at * 1000));
    link.href = `#${session.id}`;
    link.onclick = () => setOpen(false);
    name.textContent = title;
    about.textContent = [begun, areModelsNamed() && session.model, title !== files && files].filter(Boolean).join(" · ");
    picture.hidden = clips.length === 0;
    if (clips[0]?.status === "ready") {
      api.frameUrl(clips[0].id, 0, pictures.signal).then((url) => { picture.src = url; }, () => {}); // the picture is decorative
    }
    if (!files) again.title = "New conversation";
    again.setAttribute("aria-label", files ? `New conversation about ${files}` : "New conversation without a video");
    again.onclick = () => (setOpen(false), onAgain(session));
    remove.setAttribute("aria-label", `Delete the conversation “${title}”, ${files && `${files}, `}${begun}`);
    remove.onclick = () => confirm(`Delete the conversation “${title}”?`) && erase(session.id);
    return item;
  }

  function mark() {
    for (const link of list.querySelectorAll("a")) {
      if (link.hash === location.hash) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  async function erase(id) {
    const place = sessions.findIndex((session) => session.id === id);
    try {
      await api.deleteSession(id);
    } catch (error) {
      if (error.status !== 404) return showProblem(problem, error);
    }
    titles.forget(id);
    onDeleted(id);
    await load();
    const links = list.querySelectorAll("a");
    if (links.length) links[Math.min(place, links.length - 1)].focus(); // the button that had the focus has been removed
    else setOpen(false);
  }

  /** Names a conversation by its first question. */
  function name(sessionId, question) {
    if (titles.remember(sessionId, question)) show();
  }

  return { load, mark, name, show };
}
