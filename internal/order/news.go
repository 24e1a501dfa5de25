package order

import "time"

// A change of state is told before the next HELLO is due, but not at once: one
// that is over soon is not worth a word, and a thousand nodes that an Order
// changes must not all speak in the same moment.
const (
	newsLeast = 250 * time.Millisecond
	newsEach  = 10 * time.Millisecond // for each node that is known: the longest wait besides
	newsBurst = 4
	newsRate  = 0.5             // such HELLOs in a second, after the first ones
	newsPause = 2 * time.Second // until another try
)

// A stance is what a HELLO tells of a participant's state.
type stance struct {
	state State
	order OrderID
}

// News are what others do not know yet.
type news struct {
	told stance    // by the last HELLO to all
	at   time.Time // of the next HELLO that tells of a change; zero without one
	room bucket
}

func (n *Node) stance(now time.Time) stance {
	if n.role == RoleAgent {
		s := n.Status(now)
		return stance{s.State, s.Order}
	}
	is := stance{state: CallerState}
	if n.caller != nil {
		is.order = n.caller.holds() // so that others can see whose it is
	}
	return is
}

// notice plans a HELLO if the state is another than was told, and drops the plan
// when it is what was told after all.
func (n *Node) notice(now time.Time) {
	switch changed := n.stance(now) != n.news.told; {
	case !changed:
		n.news.at = time.Time{}
	case n.news.at.IsZero():
		most := time.Duration(len(n.ring)+1) * newsEach
		n.news.at = now.Add(newsLeast + time.Duration(n.rng.Int64N(int64(most))))
	}
}

// tellNews says HELLO if one is planned, as the links do that are up.
func (n *Node) tellNews(now time.Time) {
	switch {
	case n.news.at.IsZero() || now.Before(n.news.at) || n.stance(now) == n.news.told:
		return
	case !n.news.room.take(now, newsBurst, newsRate):
		n.news.at = now.Add(newsPause)
		return
	}
	n.greet(now, Multicast, false)
	for _, l := range n.links {
		if p := n.peers[l.id]; l.known && p != nil && p.proved {
			n.greet(now, l.addr, false)
		}
	}
}
