// Package muster holds the nouns of the system: nodes, commands, states,
// reports, and the errors that cross the network. Everything else speaks in
// these words.
//
// It imports the standard library only and does no I/O. Values that come from
// outside are checked by their Validate methods, which say what is wrong and
// what was expected; nothing else in the program trusts an unchecked value.
package muster
