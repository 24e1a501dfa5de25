// Package order is the brokerless protocol: an operator takes exclusive,
// leased control of the machines that it can reach, asks them to do things, and
// lets go, with no server anywhere.
//
// A Node is one participant and a plain value. It is told what happened and
// answers with a Ready: what to keep, to send, to run and to tell. It knows no
// clock, no socket and no file, so that hours of loss, partitions and crashes
// pass in milliseconds of a test. A Caller is a Node that cannot be locked,
// with the operator's side on top; the program of an operator is a participant
// like any other.
//
//	Receive Tick Finished    Call Query Renew Release
//	        |                          |
//	     [Node]  <---- embedded ---- [Caller]
//	        |
//	      Ready
//	        |
//	1. Save     -> a file on a RAM disk, before anything below
//	2. Sends    -> sealed, to the network
//	3. Executes -> the method; later Finished
//	4. Events   -> log, terminal
//
// # How an adapter drives it
//
// One goroutine owns the value. In a loop:
//
//	r := node.Ready()
//	carry out r, in the order above
//	wait for a frame, the end of a query, a request, or node.Next()
//	frame:   f, err := order.Decode(opened); if err == nil { node.Receive(time.Now(), from, f) }
//	query:   node.Finished(time.Now(), q.Order, q.Seq, code, data)
//	Next():  node.Tick(time.Now())
//
// Sealing is the adapter's business, and so is the choice between UDP and TCP:
// Encode says how long a frame is, and Send.TCPPort where its receiver takes
// long ones. An address is whatever string the adapter can send to; a frame's
// own source is never taken for one. A reply to a frame goes to the address
// that the adapter named when it confirmed the sender.
//
// Neighbours are found by HELLO frames on Multicast. Where there is none, the
// adapter calls AddPeer with an address to begin with, and with that of each
// gossip link when it opens.
//
// Over a broker of messages a caller reaches every agent itself: it calls AddPeer
// with the address of each, which begins with Hub. There is no more to it; who is
// reached on the network as well gets each frame in both ways.
//
// An operator's program does the same with a Caller: it waits for NeighbourUp,
// better for several within some 100 ms, and calls Call; CallWon or CallLost
// follows, then Query, Renew at half of the lease, Release. Before it ends it
// stays for ReleaseDone, so that lost frames are repeated.
//
// If Save cannot be stored the adapter must not carry out the rest: it tries
// again or stops. What is dropped so is as if lost on the network, which the
// protocol survives. An empty Save removes the file.
//
// The frames, rules and timers are described in docs/order-wire.md, the sealed
// envelope around them in docs/order-envelope.md.
package order
