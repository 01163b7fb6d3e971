// Draws the loss curves of the runs that were clicked, and tells what is known of them.
const most = 8
const shades = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]
const dashes = ["solid", "dashed", "dotdash", "dotted", "dashdot"]
const marks = ["\u2014\u2014\u2014", "\u2013 \u2013 \u2013", "\u2013 \u00b7 \u2013", "\u00b7 \u00b7 \u00b7 \u00b7", "\u2013 \u00b7 \u00b7"]
const chosen = runs.selected.indices.slice(0, most)
const table = document.createElement("table")
table.style.whiteSpace = "nowrap"
const write = (value) => {
  if (typeof value !== "number") return String(value)
  const size = Math.abs(value)
  return size >= 1e6 ? value.toExponential(5) : String(Number(value.toPrecision(6)))
}
function insert(row, text) {
  const cell = row.insertCell()
  cell.textContent = text
  cell.style.paddingRight = "1em"
  return cell
}
if (curves !== null) {
  // Which curve is whose.
  const row = table.insertRow()
  insert(row, "curve")
  chosen.forEach((_, rank) => {
    insert(row, marks[rank % marks.length]).style.color = shades[rank % shades.length]
  })
}
for (const [column, name] of names) {
  const row = table.insertRow()
  insert(row, name)
  for (const k of chosen) insert(row, write(runs.data[column][k]))
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
