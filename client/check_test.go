package client

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
)

func TestClockOfTheBroker(t *testing.T) {
	for _, c := range []struct {
		ahead, within time.Duration
		level, want   string
	}{
		{3 * time.Millisecond, 2 * time.Millisecond, "ok", "by 5ms at most"},
		{-30 * time.Second, time.Millisecond, "ok", "by 30.001s at most"},
		{61 * time.Second, 2 * time.Second, "ok", "by 1m3s at most"}, // it may be less than the limit
		{2 * time.Hour, time.Second, "warn", "2h0m0s ahead of"},
		{-90 * time.Second, time.Second, "warn", "1m30s behind"},
	} {
		var h Health
		brokerClock(c.ahead, c.within, &h)
		if len(h.Checks) != 1 || h.Checks[0].Name != "clock" || h.Checks[0].Level != c.level || !strings.Contains(h.Checks[0].Message, c.want) {
			t.Errorf("%v, within %v: got %+v, want %s and %q", c.ahead, c.within, h.Checks, c.level, c.want)
		}
	}
}

func TestClocksOfNodes(t *testing.T) {
	var h Health
	checkNodeClocks(&h, []Node{{Name: "a", Online: true}, {Name: "b", Online: true, ClockOff: 59 * time.Second}, {Name: "away", ClockOff: time.Hour}})
	if len(h.Checks) != 1 || h.Checks[0].Name != "node clocks" || h.Checks[0].Level != "ok" || !strings.Contains(h.Checks[0].Message, "(2)") {
		t.Errorf("got %+v", h.Checks)
	}
	h = Health{}
	checkNodeClocks(&h, []Node{{Name: "a", Online: true}, {Name: "b", Online: true, ClockOff: -2 * time.Minute}})
	if len(h.Checks) != 1 || h.Checks[0].Level != "warn" || !strings.Contains(h.Checks[0].Message, "b differs by -2m0s") {
		t.Errorf("got %+v", h.Checks)
	}
}

// Each address is looked at, also when one has led to the broker: a way that is
// gone is missed when the other one goes.
func TestPortsOfTheBroker(t *testing.T) {
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	// Nobody listens at the other end of a connection, nor can anybody meanwhile.
	gone, err := net.Dial("tcp", there.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	urls := []string{"nats://" + there.Addr().String(), "tls://" + gone.LocalAddr().String(), "nats://127.0.0.1:0x"}
	for connected, want := range map[string]string{"": "ok fail fail", there.Addr().String(): "ok warn warn"} {
		var h Health
		c := &Client{dial: bus.Options{URLs: urls}}
		c.checkPorts(t.Context(), connected, &h)
		var got []string
		for _, check := range h.Checks {
			got = append(got, check.Level)
			if check.Name != "port" || (check.Level == "ok") != (check.Hint == "") {
				t.Errorf("got %+v", check)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("connected to %q: got %q, want %q", connected, got, want)
		}
	}
}

func TestDurability(t *testing.T) {
	always, later := bus.ServerSync{Server: "a", Always: true}, bus.ServerSync{Server: "b"}
	for _, c := range []struct {
		d    bus.Durability
		want string
	}{
		{bus.Durability{Servers: []bus.ServerSync{always}}, "ok"},
		{bus.Durability{Servers: []bus.ServerSync{always, later}}, "warn"},
		{bus.Durability{Servers: []bus.ServerSync{always}, Silent: 2}, "warn"},
		{bus.Durability{Servers: []bus.ServerSync{later, later}, Silent: 1}, "warn warn warn"},
	} {
		var h Health
		durability(c.d, &h)
		var got []string
		for _, check := range h.Checks {
			got = append(got, check.Level)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: got %+v, want %s", c.d, h.Checks, c.want)
		}
	}
}

// An identity can be good by its date and worth nothing to the broker.
func TestIdentityThatTheBrokerRefuses(t *testing.T) {
	c := &Client{caller: "ada", signer: &aaa.Signer{}, until: time.Now().Add(100 * 24 * time.Hour)}
	for refused, want := range map[bool]Check{
		false: {"identity", "ok", "ada, until", ""},
		true:  {"identity", "warn", "has not expired", "broker"},
	} {
		var h Health
		c.checkIdentity(&h, refused)
		if got := h.Checks[0]; got.Name != want.Name || got.Level != want.Level || !strings.Contains(got.Message, want.Message) || !strings.Contains(got.Hint, want.Hint) {
			t.Errorf("refused %v: got %+v", refused, got)
		}
	}
}

// Which subject the broker did not permit tells a person nothing.
func TestRefusalNamesMethodAndNode(t *testing.T) {
	err := muster.Errorf(muster.Denied, "publish muster.command.9.web2.command.echo")
	got := refusal(err, "echo", "web2")
	if got.Kind != muster.Denied || got.Message != "your context may not use echo on web2" || !strings.Contains(got.Hint, "--method echo --node web2") {
		t.Errorf("got %+v", got)
	}
	if got := refusal(muster.Errorf(muster.Full, "the queue is full"), "echo", "web2"); got.Kind != muster.Full || got.Message != "the queue is full" {
		t.Errorf("got %+v", got)
	}
}

func TestCount(t *testing.T) {
	if got := count(1, "send waits", "sends wait") + ", " + count(uint64(2), "message could", "messages could"); got != "1 send waits, 2 messages could" {
		t.Error(got)
	}
}
