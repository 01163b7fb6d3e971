// Draws the loss curves of the runs that were clicked, and tells what is known of them.
const most = 8
const shades = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]
const dashes = ["solid", "dashed", "dotdash", "dotted", "dashdot"]
const chosen = runs.selected.indices.slice(0, most)
const table = document.createElement("table")
table.style.whiteSpace = "nowrap"
for (const [column, name] of names) {
  const row = table.insertRow()
  row.insertCell().textContent = name
  for (const k of chosen) {
    const value = runs.data[column][k]
    row.insertCell().textContent =
      typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value)
  }
}
said.text = chosen.length > 0 ? table.outerHTML : ""
if (curves === null) return
curves.visible = chosen.length > 0
const value = (name, k) => {
  const found = names.find((pair) => pair[1] === name && pair[0].startsWith("value"))
  return found === undefined ? NaN : runs.data[found[0]][k]
}
// They are decoded when they are first asked for.
window.memjaxCurves().then((stored) => {
  const xs = [], ys = [], colour = [], dash = [], ex = [], ey = []
  chosen.forEach((k, rank) => {
    const [times, losses] = stored.read(k)
    const time = value("time reached", k), loss = value("loss at the end", k)
    if (Number.isFinite(time) && Number.isFinite(loss)) {
      times.push(time)
      losses.push(loss)
      ex.push(time)
      ey.push(loss)
    }
    xs.push(times)
    ys.push(losses)
    colour.push(shades[rank % shades.length])
    dash.push(dashes[rank % dashes.length])
  })
  const all = ys.flat()
  if (all.length > 0) {
    const low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b))
    const margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1
    curves.y_range.setv({start: low - margin, end: high + margin})
    const seen = xs.flat().filter((time) => time > 0)
    const first = seen.reduce((a, b) => Math.min(a, b)), last = seen.reduce((a, b) => Math.max(a, b))
    curves.x_range.setv({start: first, end: 2 * last})
  }
  curve.data = {xs, ys, colour, dash}
  ends.data = {x: ex, y: ey, colour: colour.slice(0, ex.length)}
})
