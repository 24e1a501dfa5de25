// Package participant runs the order protocol: it gives a value of package order
// a clock, a network, a file and methods.
//
// A Loop drives any participant. An Agent is one that can be locked and that
// executes what the operator asks for:
//
//	frames, ends of queries, requests -> [Loop: order.Node] -> lock's file,
//	                                            |              sends, methods, events
//	                                     one or more Carriers
//
// The package is part of a small program, and imports little on purpose.
package participant
