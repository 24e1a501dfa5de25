package agent

import (
	"crypto/rand"
	"encoding/hex"
	"slices"
	"sync"

	"github.com/musterfleet/muster"
)

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// problems are what an operator should know of the node, by topic.
type problems struct {
	mu    sync.Mutex // guards the fields below
	topic map[string]string
	news  bool // something changed since it was listed
}

func (p *problems) add(text string) { p.set(text, text) }

// set replaces the text of a topic; an empty one ends it. It reports whether
// that is news.
func (p *problems) set(topic, text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.topic[topic] == text {
		return false
	}
	if p.topic == nil {
		p.topic = make(map[string]string)
	}
	p.topic[topic] = text
	if text == "" {
		delete(p.topic, topic)
	}
	p.news = true
	return true
}

// changed reports whether anything is different from what was listed last.
func (p *problems) changed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news
}

// untold says that what was listed has reached nobody.
func (p *problems) untold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.news = true
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.news = false
	var all []string
	for _, t := range p.topic {
		all = append(all, t)
	}
	slices.Sort(all)
	return all
}

// recent remembers the ids of withdrawals that were taken in, so that they are
// judged and audited once. It forgets the oldest.
type recent struct {
	mu    sync.Mutex // guards the fields below
	ids   map[muster.CommandID]bool
	order []muster.CommandID
}

// seen reports whether the id was seen before, and remembers it.
func (r *recent) seen(id muster.CommandID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id] {
		return true
	}
	if r.ids == nil {
		r.ids = make(map[muster.CommandID]bool)
	}
	r.ids[id] = true
	r.order = append(r.order, id)
	if len(r.order) > 2*maxControl {
		delete(r.ids, r.order[0])
		r.order = r.order[1:]
	}
	return false
}

// forget makes the id one that was not seen.
func (r *recent) forget(id muster.CommandID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id] {
		delete(r.ids, id)
		r.order = slices.DeleteFunc(r.order, func(o muster.CommandID) bool { return o == id })
	}
}
