// The readout under the pointer: the lines' own points, turned back into values.
const names = JSON.parse(document.getElementById("names").textContent);
const say = v => Math.abs(v) >= 1e4 ? Math.round(v).toLocaleString("en") : Math.abs(v) < 1e-3 && v !== 0 ? v.toExponential(2) : +v.toPrecision(4) + "";
for (const svg of document.querySelectorAll("figure>svg")) {
  const [left, top, right, bottom, x0, x1, y0, y1, log] = svg.dataset.plot.split(" ").map(Number);
  const lines = [...svg.querySelectorAll(".read")].map(line => ({ line, run: +line.dataset.run,
    points: line.getAttribute("points").split(" ").map(p => p.split(",").map(Number)) }));
  const tip = svg.parentNode.appendChild(document.createElement("div"));
  const rule = svg.appendChild(document.createElementNS(svg.namespaceURI, "line"));
  tip.className = "tip"; tip.hidden = true;
  rule.setAttribute("class", "l-faint"); rule.setAttribute("y1", top); rule.setAttribute("y2", bottom);
  const hide = () => { tip.hidden = true; rule.setAttribute("visibility", "hidden"); };
  hide();
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const nearest = new Map();
    for (const { line, run, points } of lines) {
      if (getComputedStyle(line).display === "none") continue;
      for (const [x, y] of points) {
        const far = Math.abs(x - px);
        if (!nearest.has(run) || far < nearest.get(run).far) nearest.set(run, { far, x, y });
      }
    }
    if (!nearest.size || px < left - 8 || px > right + 8) return hide();
    const at = [...nearest.values()].reduce((a, b) => a.far < b.far ? a : b).x;
    tip.textContent = svg.dataset.axis + " " + say(x0 + (at - left) / (right - left) * (x1 - x0));
    for (const [run, { y, far }] of [...nearest].sort((a, b) => a[0] - b[0])) {
      if (far > 12) continue;
      const share = (bottom - y) / (bottom - top);
      const row = tip.appendChild(document.createElement("div")), dot = row.appendChild(document.createElement("i"));
      dot.style.background = getComputedStyle(lines.find(l => l.run === run).line).stroke;
      row.append(names.length > 1 ? names[run] + " " : "");
      row.appendChild(document.createElement("b")).textContent = say(log ? y0 * (y1 / y0) ** share : y0 + share * (y1 - y0));
    }
    rule.setAttribute("x1", at); rule.setAttribute("x2", at); rule.setAttribute("visibility", "visible");
    tip.hidden = false;
    const middle = at < (left + right) / 2;
    tip.style.left = middle ? (at + 10) / svg.viewBox.baseVal.width * 100 + "%" : "auto";
    tip.style.right = middle ? "auto" : (svg.viewBox.baseVal.width - at + 10) / svg.viewBox.baseVal.width * 100 + "%";
    tip.style.bottom = box.height * (1 - (bottom - 6) / svg.viewBox.baseVal.height) + "px";
  });
}
