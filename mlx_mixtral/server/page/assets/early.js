// Before anything is painted: the appearance that was chosen and the room that there is, so that
// nothing flashes.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("theme");
  } catch {
    // A browser that keeps nothing has the system's appearance.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  document.documentElement.classList.toggle("drawer", innerWidth < 820);
})();
