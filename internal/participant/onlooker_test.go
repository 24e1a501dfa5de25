package participant

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/lan"
	"github.com/musterfleet/muster/internal/order"
	"github.com/musterfleet/muster/internal/seal"
)

// hello is the HELLO of a participant in a state.
func hello(t testing.TB, state order.State, name string) []byte {
	t.Helper()
	h := &order.Hello{Protocol: order.Protocol, ID: [16]byte{1, 2}, State: state, Name: name}
	frame, err := order.Encode(order.Frame{Src: order.NodeID{1, 2}, SrcBoot: order.BootID{1}, Counter: 1, Body: h})
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

type sent struct {
	to    lan.Address
	frame []byte
}

// listening is a teller that keeps what it sends.
func listening() (*teller, *[]sent) {
	var all []sent
	return newTeller(func(to lan.Address, frame []byte) { all = append(all, sent{to, frame}) }), &all
}

// helloOf is the HELLO of one of many participants.
func helloOf(t testing.TB, i int, state order.State, port uint16) []byte {
	t.Helper()
	id := [16]byte{byte(i), byte(i >> 8), 1}
	frame, err := order.Encode(order.Frame{Src: order.NodeID(id[:8]), SrcBoot: order.BootID{1}, Counter: 1,
		Body: &order.Hello{Protocol: order.Protocol, ID: id, State: state, Name: fmt.Sprint("n", i), TCPPort: port}})
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// HELLOs are passed on to operators' programs that have a connection, and to nobody
// else.
func TestTeller(t *testing.T) {
	const mine, remote lan.Address = "tcp/127.0.0.1:5000", "tcp/10.0.0.9:5000"
	operator, agent := hello(t, order.CallerState, "op"), helloOf(t, 7, order.Idle, 6776)
	for name, c := range map[string]struct {
		before map[lan.Address][]byte // who has said what
		from   lan.Address
		frame  []byte
		want   []lan.Address
		as     lan.Address
	}{
		"a HELLO":                {map[lan.Address][]byte{mine: operator, remote: operator}, "10.0.0.5:6776", agent, []lan.Address{remote, mine}, "10.0.0.5:6776"},
		"an operator's HELLO":    {map[lan.Address][]byte{mine: operator}, "10.0.0.5:6776", operator, []lan.Address{mine}, "10.0.0.5:6776"},
		"to an agent":            {map[lan.Address][]byte{mine: agent}, "10.0.0.5:6776", agent, nil, ""},
		"to who multicasts":      {map[lan.Address][]byte{"10.0.0.8:6776": operator}, "10.0.0.5:6776", agent, nil, ""},
		"without a HELLO of it":  {map[lan.Address][]byte{mine: {0x87, 2}}, "10.0.0.5:6776", agent, nil, ""},
		"after half a HELLO":     {map[lan.Address][]byte{mine: operator[:20]}, "10.0.0.5:6776", agent, nil, ""},
		"what is no HELLO":       {map[lan.Address][]byte{mine: operator}, "10.0.0.5:6776", []byte{0x87, 2, 3}, nil, ""},
		"what came over a link":  {map[lan.Address][]byte{mine: operator}, "tcp/10.0.0.5:40000", agent, []lan.Address{mine}, "10.0.0.5:6776"},
		"an operator over one":   {map[lan.Address][]byte{mine: operator}, remote, helloOf(t, 8, order.CallerState, 0), []lan.Address{mine}, "10.0.0.9:5000"},
		"what is as good as all": {map[lan.Address][]byte{mine: operator}, "10.0.0.5:6776", slices.Concat(agent, make([]byte, lan.MaxDatagram)), nil, ""},
	} {
		h, all := listening()
		for from, frame := range c.before {
			h.heard(from, frame)
		}
		*all = nil
		if from, frame := h.heard(c.from, c.frame); from != c.from || !bytes.Equal(frame, c.frame) {
			t.Errorf("%s: the agent itself hears something else", name)
		}
		var got []lan.Address
		for _, s := range *all {
			of, frame, ok := parseHeard(s.frame)
			if ok && (len(frame) == 0 || bytes.Equal(frame, operator) && !bytes.Equal(frame, c.frame)) {
				continue // that it passes on, and what was said before
			}
			if !ok || of != c.as || !bytes.Equal(frame, c.frame) {
				t.Errorf("%s: %x is passed on, of %s", name, s.frame, of)
			}
			got = append(got, s.to)
		}
		if slices.Sort(got); !slices.Equal(got, c.want) {
			t.Errorf("%s: it is passed on to %v, want %v", name, got, c.want)
		}
	}
}

// A new onlooker hears at once of all whose last word is not old, each once.
func TestTellerRemembers(t *testing.T) {
	h, all := listening()
	now := time.Now()
	for i, age := range []time.Duration{wordLife + time.Second, wordLife / 2, wordLife / 2, 0} {
		h.tell(now.Add(-age), "10.0.0.5:6776", order.NodeID{byte(min(i, 2))}, heardFrame("10.0.0.5:6776", helloOf(t, i, order.Idle, 0)))
	}
	h.welcome(now, "tcp/10.0.0.9:5000")
	h.welcome(now, "tcp/10.0.0.9:5000")
	var said [][]byte
	for _, s := range *all {
		if _, says, ok := parseHeard(s.frame); ok && len(says) > 0 {
			said = append(said, says)
		}
	}
	slices.SortFunc(said, bytes.Compare)
	if want := [][]byte{helloOf(t, 1, order.Idle, 0), helloOf(t, 3, order.Idle, 0)}; !slices.EqualFunc(said, want, bytes.Equal) {
		t.Errorf("got %x, want %x", said, want)
	}
}

func TestTellerForgets(t *testing.T) {
	h, _ := listening()
	now := time.Now()
	id := func(i int) order.NodeID { return order.NodeID{byte(i), byte(i >> 8)} }
	for i := range maxWords + 10 {
		h.tell(now, "10.0.0.5:6776", id(i), nil)
	}
	if len(h.words) != maxWords {
		t.Errorf("%d words are kept", len(h.words))
	}
	h.tell(now.Add(wordLife), "10.0.0.5:6776", id(maxWords+1), nil)
	if len(h.words) != 1 {
		t.Errorf("%d words are kept after a while", len(h.words))
	}
}

func TestTellerIsBounded(t *testing.T) {
	h, all := listening()
	now := time.Now()
	for i := range maxOnlookers + 3 {
		h.welcome(now, lan.Address(fmt.Sprintf("tcp/127.0.0.1:%d", 1000+i)))
	}
	if len(h.onlookers) != maxOnlookers || len(*all) != maxOnlookers {
		t.Errorf("%d are passed on to, %d were told so", len(h.onlookers), len(*all))
	}
	h.welcome(now.Add(linkLife+1), "tcp/127.0.0.1:9")
	if len(h.onlookers) != 1 {
		t.Errorf("%d are left after a long time", len(h.onlookers))
	}
}

// An onlooker believes the agent of its machine, and nobody else.
func TestOnlooker(t *testing.T) {
	const agent lan.Address = "tcp/127.0.0.1:6776"
	says := hello(t, order.Idle, "web1")
	passed := heardFrame("10.0.0.5:6776", says)
	o := &onlooker{trusts: ofThisMachine}
	if from, frame := o.heard("tcp/10.0.0.9:6776", passed); from != "tcp/10.0.0.9:6776" || !bytes.Equal(frame, passed) || o.told.Load() {
		t.Errorf("of another machine it takes %x from %s", frame, from)
	}
	if from, frame := o.heard(agent, says); from != agent || !bytes.Equal(frame, says) {
		t.Errorf("the agent's own word is %x from %s", frame, from)
	}
	if _, frame := o.heard(agent, heardFrame("", nil)); len(frame) != 0 || !o.told.Load() {
		t.Error("the word that the agent passes on is not heard")
	}
	if from, frame := o.heard(agent, passed); from != "10.0.0.5:6776" || !bytes.Equal(frame, says) {
		t.Errorf("it hears %x from %s", frame, from)
	}
	for _, bad := range [][]byte{
		heardFrame("tcp/10.0.0.5:6776", says), heardFrame("host:6776", says), heardFrame("", says), heardFrame("10.0.0.5:6776", nil),
		heardFrame("10.0.0.5:6776", []byte{0x87, 2}), append(slices.Clone(passed), 0), passed[:20],
	} {
		if from, frame := o.heard(agent, bad); from != agent || !bytes.Equal(frame, bad) {
			t.Errorf("%x is taken for %x from %s", bad, frame, from)
		}
	}
}

// One that calls hears of operators alone from agents elsewhere.
func TestOnlookerThatCalls(t *testing.T) {
	const agent lan.Address = "tcp/10.0.0.9:6776"
	for state, taken := range map[order.State]bool{order.Idle: false, order.Ordered: false, order.CallerState: true} {
		says := hello(t, state, "x")
		o := &onlooker{trusts: isLink, callers: true}
		from, frame := o.heard(agent, heardFrame("10.0.0.5:6776", says))
		if taken != bytes.Equal(frame, says) || taken != (from == "10.0.0.5:6776") || !taken && len(frame) > 0 {
			t.Errorf("of %v it hears %x from %s", state, frame, from)
		}
	}
	o := &onlooker{trusts: isLink}
	if _, frame := o.heard("10.0.0.9:6776", heardFrame("10.0.0.5:6776", hello(t, order.Idle, "x"))); isHello(frame) {
		t.Error("it believes a datagram")
	}
}

// A catcher keeps what a LAN brings.
type catcher struct {
	links  chan order.Address
	frames chan sent
}

func (c catcher) Link(a order.Address) { c.links <- a }
func (c catcher) Receive(from order.Address, frame []byte) {
	c.frames <- sent{lan.Address(from), bytes.Clone(frame)}
}

// openLocal starts a LAN on loopback.
func openLocal(t *testing.T, box *seal.Box, peers []string, before func(*LAN)) (*LAN, catcher) {
	t.Helper()
	l, err := OpenLAN(lan.Options{Box: box, Host: "127.0.0.1", Unicast: true, Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(l)
	}
	c := catcher{make(chan order.Address, 100), make(chan sent, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx, c); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return l, c
}

// Over real connections: a program beside an agent hears of another with the address
// that its HELLO came from.
func TestHellosArePassedOn(t *testing.T) {
	box, err := seal.New("lab", make([]byte, seal.SecretSize), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agent, _ := openLocal(t, box, nil, (*LAN).PassOn)
	var told func() bool
	beside, caught := openLocal(t, box, []string{agent.LocalAddr()}, func(l *LAN) { told = l.LookOn() })
	other, _ := openLocal(t, box, nil, nil)
	beside.Send(<-caught.links, hello(t, order.CallerState, "op"))
	says := hello(t, order.Idle, "web1")
	for {
		select {
		case s := <-caught.frames:
			if want := lan.Address(other.LocalAddr()); s.to != want || !bytes.Equal(s.frame, says) || !told() {
				t.Errorf("%x is heard from %s, want %x from %s; told: %t", s.frame, s.to, says, want, told())
			}
			return
		case <-time.After(20 * time.Millisecond): // until the agent knows the program
			other.Send(order.Address(agent.LocalAddr()), says)
		case <-t.Context().Done():
			t.Fatal("nothing is passed on")
		}
	}
}

func FuzzHeard(f *testing.F) {
	f.Add(heardFrame("", nil))
	f.Add(heardFrame("10.0.0.5:6776", hello(f, order.Idle, "web1")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		from, says, ok := parseHeard(frame)
		if ok && !bytes.Equal(heardFrame(from, says), frame) {
			t.Errorf("%x is read as %x from %s", frame, says, from)
		}
	})
}
