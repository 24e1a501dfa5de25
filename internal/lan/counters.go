package lan

import "sync/atomic"

// A Reason is why something was dropped.
type Reason int

// The reasons.
const (
	Malformed      Reason = iota // not an envelope, or not one of a known version
	Stranger                     // an envelope of another constellation
	Forged                       // an envelope that the secret does not open
	Rationed                     // not even tried: its source had failed too often
	BadFragment                  // a fragment that fits nothing, or has no room
	StaleFragments               // messages whose fragments did not come in time
	TooLarge                     // to be sent, but longer than allowed
	NoRoute                      // to be sent to an address that is none, or a connection that is gone
	QueueFull                    // to be sent, but too much waits already
	SendFailed                   // the system did not take it, or the connection broke
	Refused                      // connections that were closed for lack of room
	reasons
)

// String returns the name of a reason for metrics.
func (r Reason) String() string {
	return [reasons]string{"malformed", "stranger", "forged", "rationed", "bad_fragment", "stale_fragments",
		"too_large", "no_route", "queue_full", "send_failed", "refused"}[r]
}

// Counters are what a Carrier did since Open. A multicast frame counts once for
// each interface and link that it was sent on.
type Counters struct {
	FramesIn, BytesIn   uint64 // that authenticated, fragments each; bytes of envelopes
	FramesOut, BytesOut uint64
	Dropped             [reasons]uint64 // by Reason
}

type counters struct {
	framesIn, bytesIn, framesOut, bytesOut atomic.Uint64
	dropped                                [reasons]atomic.Uint64
	waiting                                atomic.Int64 // bytes in the queues of all connections
}

func (c *counters) drop(r Reason, n int) {
	if n > 0 {
		c.dropped[r].Add(uint64(n))
	}
}

func (c *counters) sent(frames, size int) {
	c.framesOut.Add(uint64(frames))
	c.bytesOut.Add(uint64(frames * size))
}

func (c *counters) received(size int) {
	c.framesIn.Add(1)
	c.bytesIn.Add(uint64(size))
}

// Counters returns what was counted so far.
func (c *Carrier) Counters() Counters {
	n := &c.counters
	all := Counters{FramesIn: n.framesIn.Load(), BytesIn: n.bytesIn.Load(), FramesOut: n.framesOut.Load(), BytesOut: n.bytesOut.Load()}
	for r := range n.dropped {
		all.Dropped[r] = n.dropped[r].Load()
	}
	return all
}
