// Every picture is in the data once, whatever the number of places that show it.
for (const image of document.querySelectorAll("img[data-picture]")) {
  image.src = data.pictures[image.dataset.picture].address;
}

// What is shown of one run at a time.
const chooser = document.getElementById("shown");
const watchers = [];
function choose(run) {
  for (const part of document.querySelectorAll("[data-run]")) part.hidden = part.dataset.run !== String(run);
  for (const watcher of watchers) watcher(Number(run));
}
if (chooser) chooser.addEventListener("change", () => choose(chooser.value));
