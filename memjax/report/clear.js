// Gives every widget the value that admits all.
for (const [widget, name, value] of fresh) widget[name] = value
