package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// raw is a connection beside those of muster, to interfere with.
func raw(t *testing.T, l *link) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(l))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return js
}

func put(t *testing.T, c *bus.Conn, n int) (texts []string) {
	t.Helper()
	for i := range n {
		must(t, c.Put(t.Context(), outgoing(c, "a", i)))
		texts = append(texts, fmt.Sprint(i))
	}
	return texts
}

func flush(t *testing.T, c *bus.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, c.Flush(ctx))
}

func always(int) bool { return true }

// TestRedelivery: what is not acknowledged in time comes again, behind newer
// commands, and is marked as a repetition. A reading that begins anew has the
// order of storing again.
func TestRedelivery(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		want := put(t, c, 3)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got []string
		enough := errors.New("enough")
		err := c.Commands(ctx, "a", func(m bus.Message) error {
			got = append(got, fmt.Sprintf("%s/%d", m.Data, m.Delivered))
			if len(got) == 4 {
				return enough
			}
			return nil
		})
		if err != enough || !slices.Equal(got, []string{"0/1", "1/1", "2/1", "0/2"}) {
			t.Errorf("got %v, %v", got, err)
		}
		if again := take(t, c, "a", 3, always); !slices.Equal(again, want) {
			t.Errorf("again: %v", again)
		}
	})
}

// TestConsumerDeleted: it ends the reading with an error, also in the middle,
// and the next begins with the first command that was not acknowledged.
func TestConsumerDeleted(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		js, want := raw(t, l), put(t, c, 6)
		first := true
		var got []string
		err := c.Commands(t.Context(), "a", func(m bus.Message) error {
			got = append(got, string(m.Data))
			if first {
				first = false
				must(t, m.Ack())
				flush(t, c)
				synctest.Wait() // until the acknowledgement has been worked on
				must(t, js.DeleteConsumer(t.Context(), c.Subjects().CommandStream("a"), "-=a"))
			}
			return nil
		})
		if muster.KindOf(err) != muster.Unavailable && muster.KindOf(err) != muster.NotFound || !slices.Equal(got, want[:len(got)]) {
			t.Errorf("got %v, %v", got, err)
		}
		if again := take(t, c, "a", 5, always); !slices.Equal(again, want[1:]) {
			t.Errorf("again: %v", again)
		}
	})
}

// TestLostDelivery: a command that was handed out and did not arrive is
// noticed by the next one's number. (Somebody else takes it from the queue
// here.)
func TestLostDelivery(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		ended := make(chan error, 1)
		var got []string
		go func() {
			ended <- c.Commands(t.Context(), "a", func(m bus.Message) error {
				got = append(got, string(m.Data))
				return nil
			})
		}()
		synctest.Wait()
		put(t, c, 1)
		synctest.Wait()
		thief, err := raw(t, l).Consumer(t.Context(), c.Subjects().CommandStream("a"), "-=a")
		must(t, err)
		stolen := make(chan struct{})
		go func() {
			defer close(stolen)
			// The requests of both wait, the reader's being the first: it gets
			// command 1, the thief one of the next.
			for range 200 {
				if m, err := thief.Next(jetstream.FetchMaxWait(time.Second)); err == nil {
					_ = m // never acknowledged
					return
				}
			}
		}()
		synctest.Wait()
		for i := 1; i < 20; i++ {
			must(t, c.Put(t.Context(), outgoing(c, "a", i)))
			synctest.Wait()
		}
		<-stolen
		err = <-ended
		if muster.KindOf(err) != muster.Unavailable {
			t.Errorf("got %v", err)
		}
		var want []string
		for i := range 20 {
			want = append(want, fmt.Sprint(i))
		}
		if len(got) == 20 || !slices.Equal(got, want[:len(got)]) {
			t.Errorf("got %v", got)
		}
		if again := take(t, c, "a", 20, always); !slices.Equal(again, want) {
			t.Errorf("again: %v", again)
		}
	})
}

// TestReconnect: a reading over a new connection begins with the first command
// that was not acknowledged, however often the link breaks.
func TestReconnect(t *testing.T) {
	with(t, func(t *testing.T, l *link, c *bus.Conn) {
		const n = 40
		want := put(t, c, n)
		wire := &link{b: l.b}
		var got []string
		for len(got) < n {
			node := dial(t, wire)
			_, err := node.Load(t.Context())
			must(t, err)
			taken := 0
			err = node.Commands(t.Context(), "a", func(m bus.Message) error {
				if text := string(m.Data); len(got) == 0 || !slices.Contains(got, text) {
					got = append(got, text)
				}
				if taken++; taken <= 3 { // the others' acknowledgements are lost with the link
					must(t, m.Ack())
					flush(t, node)
				}
				if taken == 7 || len(got) == n {
					wire.set(true)
				}
				return nil
			})
			if muster.KindOf(err) != muster.Unavailable {
				t.Errorf("got %v", err)
			}
			node.Close()
			wire.set(false)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
	})
}
