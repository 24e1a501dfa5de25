// Package delivery decides what a node does with the commands it receives: in
// which order they run, what is written to the journal before which effect,
// what is said of them, and what becomes of them after a crash.
//
// An Inbox is a plain value. It is told what happened (Deliver, Cancel,
// Finished, Reported, Tick) and answers with a Ready: first the journal
// writes, then the effects that may be carried out once those writes are
// durable. It knows no clock, no file and no network, so that days of outage
// and crashes at any point can be tested in microseconds.
//
//	     Deliver Cancel Finished Reported Tick
//	                     |
//	                  [Inbox]
//	                     |
//	                   Ready
//	                     |
//	1. Writes -> journal, one durable transaction
//	2. Acks   -> the broker may forget the delivery
//	   Starts -> invoke the method
//	   Stops  -> end a run
//	   Reports-> tell the operator's side, until it is stored there
//
// The rule that makes the promises hold: an effect is carried out only after
// the writes of its Ready, and of all earlier ones, are on disk. If writing
// fails the caller keeps the Ready and tries again; nothing is acknowledged
// meanwhile.
//
// The caller of an Inbox verifies signatures and policy before Deliver; the
// Inbox trusts what it is told.
package delivery
