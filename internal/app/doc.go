// Package app wires muster: it opens the files, makes the parts and connects
// them, and runs them until the context ends. It is the one place that sees
// both sides of every seam. Nothing in it is global, so that each Run can run
// several times in one process.
package app
