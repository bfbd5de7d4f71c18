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
  const keys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation(); // the prompt would draw for the same key
      press("grid", "draw");
    } else if (event.key === "Escape") {
      press("grid_stop", "stop");
    }
  };
  document.addEventListener("keydown", keys, true);
})();
