package cli

import (
	"context"
	"io"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// noticeAfter is how long somebody may be left without a word.
const noticeAfter = time.Second

// A patient SDK says what is waited for when an answer takes its time. What is
// followed says more by itself.
type patient struct {
	SDK
	p    *program
	said string // what was waited for last
}

// during calls f, and says what is waited for when it lasts, unless that was
// said already.
func during[T any](s *patient, what string, f func() (T, error)) (T, error) {
	if s.said == what {
		return f()
	}
	told := make(chan struct{})
	timer := time.AfterFunc(noticeAfter, func() {
		defer close(told)
		s.p.say("waiting for %s ...", what)
	})
	v, err := f()
	if !timer.Stop() {
		<-told
		s.said = what
	}
	return v, err
}

// What is waited for.
const (
	theBroker = "the broker"
	theNodes  = "the broker, and for nodes to answer"
	theSend   = "the broker to store the commands"
)

func (s *patient) Nodes(ctx context.Context) ([]client.Node, error) {
	return during(s, theNodes, func() ([]client.Node, error) { return s.SDK.Nodes(ctx) })
}

func (s *patient) Select(ctx context.Context, expr string) ([]client.Node, error) {
	return during(s, theNodes, func() ([]client.Node, error) { return s.SDK.Select(ctx, expr) })
}

func (s *patient) Check(ctx context.Context) client.Health {
	h, _ := during(s, theBroker, func() (client.Health, error) { return s.SDK.Check(ctx), nil })
	return h
}

func (s *patient) Send(ctx context.Context, r client.Request) (client.Receipt, error) {
	return during(s, theSend, func() (client.Receipt, error) { return s.SDK.Send(ctx, r) })
}

func (s *patient) History(ctx context.Context, q client.HistoryQuery) ([]client.Status, error) {
	return during(s, theBroker, func() ([]client.Status, error) { return s.SDK.History(ctx, q) })
}

func (s *patient) Command(ctx context.Context, key muster.Key) ([]client.Status, error) {
	return during(s, theBroker, func() ([]client.Status, error) { return s.SDK.Command(ctx, key) })
}

func (s *patient) DeadLetters(ctx context.Context, node muster.NodeName) ([]client.DeadLetter, error) {
	return during(s, theBroker, func() ([]client.DeadLetter, error) { return s.SDK.DeadLetters(ctx, node) })
}

func (s *patient) FlushOutbox(ctx context.Context) (int, error) {
	return during(s, theBroker, func() (int, error) { return s.SDK.FlushOutbox(ctx) })
}

func (s *patient) DeadLetterCount(ctx context.Context) (uint64, error) {
	return during(s, theBroker, func() (uint64, error) { return s.SDK.DeadLetterCount(ctx) })
}

// Events that are followed need not come at all, and are not waited for.
func (s *patient) Events(ctx context.Context, q client.EventQuery, handle func(client.Event) error) error {
	if q.Follow {
		return s.SDK.Events(ctx, q, handle)
	}
	return s.change(func() error { return s.SDK.Events(ctx, q, handle) })
}

// Output says that nothing comes.
func (s *patient) Output(ctx context.Context, status client.Status, stream string, w io.Writer) error {
	told := make(chan struct{})
	notice := time.AfterFunc(noticeAfter, func() {
		defer close(told)
		s.p.say("waiting for %s of %s ...", stream, muster.Key{ID: status.ID, Node: status.Node})
	})
	coming := writerFunc(func(b []byte) (int, error) {
		if !notice.Stop() {
			return w.Write(b) // it was said
		}
		n, err := w.Write(b)
		notice.Reset(noticeAfter)
		return n, err
	})
	err := s.SDK.Output(ctx, status, stream, coming)
	if !notice.Stop() {
		<-told
	}
	return err
}

// A writerFunc is a function that is a writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (s *patient) Cancel(ctx context.Context, id muster.CommandID, nodes []muster.NodeName, reason string) (int, error) {
	return during(s, theBroker, func() (int, error) { return s.SDK.Cancel(ctx, id, nodes, reason) })
}

func (s *patient) Requeue(ctx context.Context, seq uint64) error {
	return s.change(func() error { return s.SDK.Requeue(ctx, seq) })
}

func (s *patient) DropDeadLetter(ctx context.Context, seq uint64) error {
	return s.change(func() error { return s.SDK.DropDeadLetter(ctx, seq) })
}

func (s *patient) SetLabels(ctx context.Context, node muster.NodeName, set map[string]string, remove []string) error {
	return s.change(func() error { return s.SDK.SetLabels(ctx, node, set, remove) })
}

func (s *patient) RemoveNode(ctx context.Context, node muster.NodeName) error {
	return s.change(func() error { return s.SDK.RemoveNode(ctx, node) })
}

func (s *patient) change(f func() error) error {
	_, err := during(s, theBroker, func() (struct{}, error) { return struct{}{}, f() })
	return err
}
