// Light or dark as the system has it, until the button is pressed; a browser that remembers does so for this page.
const themeButton = document.getElementById("theme");
const root = document.documentElement;
const stored = (value) => {
  try {
    if (value) localStorage.setItem("oblique-clip-theme", value);
    return localStorage.getItem("oblique-clip-theme");
  } catch {
    return null;
  }
};
const isDark = () =>
  root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => {
  themeButton.textContent = isDark() ? "Light colours" : "Dark colours";
};
if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
themeButton.hidden = false;
nameTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  stored(root.dataset.theme);
  nameTheme();
});
