package participant

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"reflect"
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

func newTeller() (*teller, *[]sent) {
	var all []sent
	return &teller{send: func(to lan.Address, frame []byte) { all = append(all, sent{to, frame}) }, onlookers: map[lan.Address]time.Time{}}, &all
}

// HELLOs are passed on to operators' programs on this machine, and to nobody else.
func TestTeller(t *testing.T) {
	const mine, theirs, remote lan.Address = "tcp/127.0.0.1:5000", "tcp/[::1]:5001", "tcp/10.0.0.9:5000"
	operator, agent := hello(t, order.CallerState, "op"), hello(t, order.Idle, "web1")
	for name, c := range map[string]struct {
		before map[lan.Address][]byte // who has said what
		from   lan.Address
		frame  []byte
		want   []lan.Address
	}{
		"a HELLO":                {map[lan.Address][]byte{mine: operator, theirs: operator}, "10.0.0.5:6776", agent, []lan.Address{mine, theirs}},
		"an operator's HELLO":    {map[lan.Address][]byte{mine: operator}, "10.0.0.5:6776", operator, []lan.Address{mine}},
		"to an agent":            {map[lan.Address][]byte{mine: agent}, "10.0.0.5:6776", agent, nil},
		"to another machine":     {map[lan.Address][]byte{remote: operator}, "10.0.0.5:6776", agent, nil},
		"without a HELLO of it":  {map[lan.Address][]byte{mine: {0x87, 2}}, "10.0.0.5:6776", agent, nil},
		"after half a HELLO":     {map[lan.Address][]byte{mine: operator[:20]}, "10.0.0.5:6776", agent, nil},
		"what is no HELLO":       {map[lan.Address][]byte{mine: operator}, "10.0.0.5:6776", []byte{0x87, 2, 3}, nil},
		"what came over a link":  {map[lan.Address][]byte{mine: operator}, remote, agent, nil},
		"what is as good as all": {map[lan.Address][]byte{mine: operator}, "10.0.0.5:6776", slices.Concat(agent, make([]byte, lan.MaxDatagram)), nil},
	} {
		h, all := newTeller()
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
			if !ok || of != c.from || !bytes.Equal(frame, c.frame) {
				t.Errorf("%s: %x is passed on", name, s.frame)
			}
			got = append(got, s.to)
		}
		if slices.Sort(got); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: it is passed on to %v, want %v", name, got, c.want)
		}
	}
}

func TestTellerIsBounded(t *testing.T) {
	h, all := newTeller()
	op := hello(t, order.CallerState, "op")
	now := time.Now()
	for i := range maxOnlookers + 3 {
		h.welcome(now, lan.Address(fmt.Sprintf("tcp/127.0.0.1:%d", 1000+i)), op)
	}
	if len(h.onlookers) != maxOnlookers || len(*all) != maxOnlookers {
		t.Errorf("%d are passed on to, %d were told so", len(h.onlookers), len(*all))
	}
	h.welcome(now.Add(linkLife+1), "tcp/127.0.0.1:9", op)
	if len(h.onlookers) != 1 {
		t.Errorf("%d are left after a long time", len(h.onlookers))
	}
}

// An onlooker believes the agent of its machine, and nobody else.
func TestOnlooker(t *testing.T) {
	const agent lan.Address = "tcp/127.0.0.1:6776"
	says := hello(t, order.Idle, "web1")
	passed := heardFrame("10.0.0.5:6776", says)
	o := &onlooker{}
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
