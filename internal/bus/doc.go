// Package bus carries muster's messages over NATS JetStream. It alone imports
// nats.go.
//
// A Conn is one connection and never heals itself: when it breaks, Done is
// closed, everything that was under way on it fails, and its owner dials a new
// one and starts again from what it knows to be stored. That is what makes the
// order strict. A connection that heals itself may store message 3 on the new
// wire before message 2, lost on the old one, is tried again.
//
// All names of streams, consumers and subjects, and who may use them, are in
// subjects.go; how the streams are made is in layout.go.
package bus
