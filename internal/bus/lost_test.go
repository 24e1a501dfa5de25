package bus_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// A lossyLink loses frames of the protocol that a test chooses, as the servers
// of a cluster do when the connection between two of them ends.
type lossyLink struct {
	link
	lose func(line string) bool // the first line of a frame, of both directions
}

func (l *lossyLink) InProcessConn() (net.Conn, error) {
	server, err := l.link.InProcessConn()
	if err != nil {
		return nil, err
	}
	client, inner := net.Pipe()
	go l.carry(inner, server)
	go l.carry(server, inner)
	return client, nil
}

// carry passes frames on until one end closes.
func (l *lossyLink) carry(to, from net.Conn) {
	defer to.Close()
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		frame := []byte(line)
		if word, _, _ := strings.Cut(line, " "); slices.Contains([]string{"PUB", "HPUB", "MSG", "HMSG"}, word) {
			fields := strings.Fields(line)
			size, _ := strconv.Atoi(fields[len(fields)-1])
			frame = append(frame, make([]byte, size+2)...)
			if _, err := io.ReadFull(r, frame[len(line):]); err != nil {
				return
			}
		}
		if l.lose(line) {
			continue
		}
		if _, err := to.Write(frame); err != nil {
			return
		}
	}
}

// TestLostOnTheWay: a reading that ends is complete, and one that follows goes
// on, though the last message was lost on its way or the request for it, which
// nothing later can tell.
func TestLostOnTheWay(t *testing.T) {
	const n = 5
	for _, last := range []bool{false, true} {
		for _, follow := range []bool{false, true} {
			for name, frame := range map[string]func(line string) bool{
				"message": func(line string) bool {
					return strings.Contains(line, "MSG ") && strings.Contains(line, fmt.Sprintf(".%d.", n)) && strings.Contains(line, "$JS.ACK.")
				},
				"request": func(line string) bool { return strings.Contains(line, "CONSUMER.MSG.NEXT") },
			} {
				t.Run(fmt.Sprintf("%s/last=%v/follow=%v", name, last, follow), func(t *testing.T) {
					with(t, func(t *testing.T, l *link, c *bus.Conn) { loseOne(t, l, c, n, last, follow, frame) })
				})
			}
		}
	}
}

func loseOne(t *testing.T, l *link, c *bus.Conn, n int, last, follow bool, frame func(line string) bool) {
	var want []string
	for i := range n {
		want = append(want, fmt.Sprint(i))
		must(t, c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Control("box", muster.NodeName("n"+want[i])), Data: []byte(want[i])}))
	}
	var lost atomic.Int32
	wire := &lossyLink{link: link{b: l.b}, lose: func(line string) bool { return frame(line) && lost.Add(1) == 1 }}
	reader, err := bus.Dial(t.Context(), bus.Options{InProcess: wire})
	must(t, err)
	defer reader.Close()
	var got []string
	enough := errors.New("enough")
	q := bus.Query{Stream: bus.StreamControl, Last: last}
	take := func(m bus.Stored) error {
		got = append(got, string(bytes.Clone(m.Data)))
		if follow && len(got) == n {
			return enough
		}
		return nil
	}
	read := map[bool]func(context.Context, bus.Query, func(bus.Stored) error) error{false: reader.Read, true: reader.Follow}[follow]
	started, limit := time.Now(), map[bool]time.Duration{false: 10 * time.Second, true: time.Minute}[follow]
	if err := read(t.Context(), q, take); err != nil && err != enough {
		t.Error(err)
	}
	if took := time.Since(started); took > limit { // of virtual time
		t.Errorf("it took %v", took)
	}
	if lost.Load() == 0 {
		t.Error("nothing was lost")
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// TestReadWhatIsRemoved: a reading ends though what it was told to be there has been
// removed before it came.
func TestReadWhatIsRemoved(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		must(t, c.Put(t.Context(), bus.Outgoing{Subject: c.Subjects().Control("box", "n")}))
		removed := make(chan error, 1)
		var once sync.Once
		wire := &lossyLink{link: link{b: l.b}, lose: func(line string) bool {
			if !strings.Contains(line, "CONSUMER.MSG.NEXT") {
				return false
			}
			once.Do(func() { go func() { removed <- c.Purge(t.Context(), bus.StreamControl, ">") }() })
			return true
		}}
		reader, err := bus.Dial(t.Context(), bus.Options{InProcess: wire})
		must(t, err)
		defer reader.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		must(t, reader.Read(ctx, bus.Query{Stream: bus.StreamControl}, func(bus.Stored) error {
			t.Error("a message came")
			return nil
		}))
		must(t, <-removed)
	})
}
