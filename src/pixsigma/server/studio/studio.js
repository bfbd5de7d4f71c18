// Keys, and light or dark; all else is Gradio's.
(() => {
  const shade = (dark) => document.body.classList.toggle("dark", dark);
  const keep = () => {
    const kept = localStorage.getItem("pixsigma-dark");
    if (kept !== null) shade(kept === "1");
  };
  const begin = () => {
    keep();
    // Gradio takes the system's shade once it is up, whenever that is
    new MutationObserver(keep).observe(document.body, { attributeFilter: ["class"] });
  };
  // this may be read before the page is there, or after
  if (document.body) begin();
  else document.addEventListener("DOMContentLoaded", begin);

  document.addEventListener("click", (event) => {
    if (!event.target.closest("#shade")) return;
    const dark = !document.body.classList.contains("dark");
    localStorage.setItem("pixsigma-dark", dark ? "1" : "0");
    keep();
  });

  const press = (...ids) => {
    for (const id of ids) {
      const button = document.getElementById(id);
      if (button && !button.disabled && button.offsetParent !== null) return button.click();
    }
  };
  // Esc also closes a list, a picture looked at and the editor's tools; those stop nothing
  const closes = (target) =>
    document.fullscreenElement ||
    target.closest?.("input[aria-expanded=true], .preview, #canvas");
  const keys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation(); // the prompt would draw for the same key
      press("grid", "draw");
    } else if (event.key === "Escape" && !closes(event.target)) {
      press("grid_stop", "stop");
    }
  };
  document.addEventListener("keydown", keys, true);

  // Gradio's editor says nothing of a file that the browser cannot read as a picture
  window.addEventListener("unhandledrejection", (event) => {
    const canvas = document.getElementById("canvas");
    if (!canvas || !/could not be decoded/.test(event.reason)) return;
    document.getElementById("unread")?.remove();
    const note = document.createElement("div");
    Object.assign(note, { id: "unread", className: "note wrong" });
    note.setAttribute("role", "alert");
    note.textContent = "That does not work: a picture must be PNG, JPEG or WebP, this file is none.";
    canvas.before(note);
    setTimeout(() => note.remove(), 10000);
  });
})();
