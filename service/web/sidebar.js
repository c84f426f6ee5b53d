/** The conversations there are: to go to one, to begin another about the same clip, to delete one. */

import * as api from "./api.js";
import { showProblem } from "./problem.js";

/** @param {{onAgain: (session: object) => void, onDeleted: (id: string) => void}} options */
export function createSidebar({ onAgain, onDeleted }) {
  const [panel, list, more, problem, toggle] = ["sidebar", "sessions", "more-sessions", "sidebar-problem", "sidebar-toggle"]
    .map((id) => document.getElementById(id));
  const shape = document.getElementById("session-template");
  const names = new Map(); // of videos, which never change their names
  let sessions = [];
  let hasMore = false;
  let asked = 0;

  toggle.onclick = () => setOpen(!panel.hasAttribute("data-open"));
  more.onclick = () => load(sessions.at(-1)?.id);
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !panel.hasAttribute("data-open")) return;
    event.preventDefault(); // it closes the drawer and stops no answer
    setOpen(false);
    toggle.focus();
  });

  function setOpen(isOpen) {
    panel.toggleAttribute("data-open", isOpen);
    toggle.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) panel.querySelector("a, button:not([hidden])")?.focus();
  }

  /** Reads the list anew, or what comes after one of its sessions. */
  async function load(after = null) {
    const number = ++asked;
    try {
      const page = await api.sessions(after);
      await Promise.all(page.data.flatMap((session) => session.video_ids).map(learnName));
      if (number !== asked) return; // a later reading is under way
      sessions = after ? [...sessions, ...page.data] : page.data;
      hasMore = page.has_more;
      problem.hidden = true;
      show();
    } catch (error) {
      if (number === asked) showProblem(problem, error, { label: "Try again", action: () => load(after) });
    }
  }

  async function learnName(id) {
    if (names.has(id)) return;
    try {
      names.set(id, (await api.video(id)).filename);
    } catch (error) {
      if (error.status !== 404) throw error;
      names.set(id, "A deleted video");
    }
  }

  function show() {
    more.hidden = !hasMore;
    toggle.hidden = panel.hidden = sessions.length === 0;
    document.body.toggleAttribute("data-sidebar", sessions.length > 0);
    list.replaceChildren(...sessions.map((session) => {
      const item = shape.content.cloneNode(true).firstElementChild;
      const [link, name, time] = ["a", ".name", "time"].map((selector) => item.querySelector(selector));
      const [again, remove] = item.querySelectorAll("button");
      const title = session.video_ids.map((id) => names.get(id)).join(", ");
      const begun = new Date(session.created_at * 1000);
      link.href = `#${session.id}`;
      link.onclick = () => setOpen(false);
      name.textContent = title;
      time.textContent = begun.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
      time.dateTime = begun.toISOString();
      again.setAttribute("aria-label", `New conversation about ${title}`);
      again.onclick = () => (setOpen(false), onAgain(session));
      remove.setAttribute("aria-label", `Delete the conversation about ${title}, ${time.textContent}`);
      remove.onclick = () => confirm(`Delete this conversation about ${title}?`) && erase(session.id);
      return item;
    }));
    mark();
  }

  function mark() {
    for (const link of list.querySelectorAll("a")) {
      if (link.hash === location.hash) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  async function erase(id) {
    try {
      await api.deleteSession(id);
    } catch (error) {
      if (error.status !== 404) return showProblem(problem, error);
    }
    onDeleted(id);
    await load();
  }

  return { load, mark };
}
