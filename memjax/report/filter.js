// Shows the runs and lines that all choices admit. `rules`: a column, and the widget that admits its
// values. A widget in which nothing is chosen admits all.
const tests = []
for (const {column, widget, range} of rules) {
  if (range) {
    const [low, high] = widget.value
    tests.push([column, (value) => low <= value && value <= high])
  } else if (widget.value.length > 0) {
    const chosen = new Set(widget.value)
    tests.push([column, (value) => chosen.has(String(value))])
  }
}
function admitted(source) {
  const size = source.get_length() ?? 0
  const found = new Array(size).fill(true)
  for (const [column, test] of tests) {
    // A line is of all runs of a group, and has no value where these differ.
    const values = source.data[column]
    if (values === undefined) continue
    for (let k = 0; k < size; k++) found[k] = found[k] && test(values[k])
  }
  return found
}
some.booleans = admitted(runs)
lines.booleans = admitted(laws)
const left = some.booleans.reduce((sum, one) => sum + one, 0)
count.text = words.replace(/^\d+/, String(left))
