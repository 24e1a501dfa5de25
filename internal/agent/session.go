package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v4/disk"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/delivery"
)

// sessions dials again and again until ctx ends.
func (a *Agent) sessions(ctx context.Context) {
	said := ""
	for attempt := 0; ctx.Err() == nil; {
		began := time.Now()
		err := a.session(ctx)
		if ctx.Err() != nil {
			return
		}
		var wait time.Duration
		attempt, wait = afterSession(err, attempt, time.Since(began))
		level := slog.LevelWarn
		if err.Error() == said { // a broker may be away for months
			level = slog.LevelDebug
		}
		said = err.Error()
		a.log.Log(ctx, level, "no session with the broker; trying again until there is one", "err", err, "again_in", wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-a.o.Redial:
			attempt = 0
		case <-ctx.Done():
		}
	}
}

// afterSession returns the number of the next attempt, and how long to wait for it,
// when one ended with err after it lasted for a while. An operator who has changed
// the broker's address is waiting, and knows that one is there.
func afterSession(err error, attempt int, lasted time.Duration) (next int, wait time.Duration) {
	if errors.Is(err, errRedial) {
		return 0, 0
	}
	if lasted > time.Minute {
		attempt = 0
	}
	return attempt + 1, reconnectDelay(attempt)
}

// reconnectDelay grows to half a minute and is spread, so that a fleet does
// not come back all at once.
func reconnectDelay(attempt int) time.Duration {
	ceiling := min(200*time.Millisecond<<min(attempt, 10), 30*time.Second)
	return ceiling/2 + rand.N(ceiling/2)
}

// session works on one connection until it ends.
func (a *Agent) session(ctx context.Context) error {
	conn, err := a.o.Dial(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopWatch := context.AfterFunc(ctx, conn.Close)
	defer stopWatch()
	if err := a.prepare(ctx, conn); err != nil {
		conn.Close()
		return err
	}
	pipeline, err := conn.Pipeline()
	if err != nil {
		conn.Close()
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-conn.Done():
			cancel(errLost)
		case <-a.o.Redial:
			cancel(errRedial)
		}
	})
	wg.Go(func() { a.report(ctx, conn, pipeline) })
	wg.Go(func() { a.heartbeat(ctx, conn) })
	wg.Go(func() { a.events.send(ctx, conn.Subjects(), conn.Put) })
	wg.Go(func() { a.tellAudit(ctx, conn, pipeline) })
	wg.Go(func() { a.watchRevoked(ctx, conn) })
	aside := &conflicts{wake: newSignal()}
	wg.Go(func() { a.setConflictsAside(ctx, conn, aside) })
	if a.o.Tell != nil {
		wg.Go(func() {
			a.o.Tell(ctx, func(e muster.Event) error {
				return conn.Put(ctx, eventMessage(conn.Subjects(), e, e.Time.Format(time.RFC3339Nano)))
			})
		})
	}
	if a.o.During != nil {
		wg.Go(func() { a.o.During(ctx, conn) })
	}
	a.reporter.set(pipeline)
	a.o.Online(true)
	a.log.Info("session with the broker begins")
	err = a.receive(ctx, conn, aside)
	a.o.Online(false)
	a.reporter.set(nil)
	a.farewell(conn)
	conn.Close()
	pipeline.Wait()
	wg.Wait()
	return err
}

var (
	errLost   = muster.Errorf(muster.Unavailable, "the connection to the broker was lost")
	errRedial = muster.Errorf(muster.Interrupted, "the broker has another address now")
)

// prepare reads the layout and says hello.
func (a *Agent) prepare(ctx context.Context, conn *bus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	settings, err := conn.Load(ctx)
	if err != nil {
		return err
	}
	if settings.Fleet != a.o.Fleet {
		return muster.Errorf(muster.Conflict, "the broker serves fleet %s; this node belongs to %s", settings.Fleet, a.o.Fleet)
	}
	a.setSubjects(conn.Subjects())
	return a.hello(ctx, a.helloSubject(conn), conn.Put)
}

// hello says what the node is, by put.
func (a *Agent) hello(ctx context.Context, subject string, put func(context.Context, bus.Outgoing) error) error {
	a.checkDisk(ctx)
	a.policy()
	h := muster.Hello{
		Node: a.o.Node, Version: a.o.Version, Instance: a.instance, Started: a.started,
		Methods: a.plugins, Problems: a.problems.list(),
	}
	if a.o.Problems != nil {
		h.Problems = append(h.Problems, a.o.Problems()...)
	}
	if a.o.Facts != nil {
		var errs []error
		h.Facts, errs = a.o.Facts(ctx)
		for _, err := range errs {
			h.Problems = append(h.Problems, "facts: "+err.Error())
		}
	}
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := put(ctx, bus.Outgoing{Subject: subject, Data: data}); err != nil {
		a.problems.untold()
		return err
	}
	return nil
}

func (a *Agent) helloSubject(conn *bus.Conn) string {
	return conn.Subjects().Node(conn.Mailbox(), a.o.Node)
}

// diskLeast is the free space below which a node complains.
const diskLeast = 100 << 20

// checkDisk looks at the room for journal and output.
func (a *Agent) checkDisk(ctx context.Context) {
	text := ""
	if u, err := disk.UsageWithContext(ctx, a.o.StateDir); err == nil && u.Free < diskLeast {
		text = fmt.Sprintf("only %d MiB are left on the disk of %s: when it is full, nothing is accepted", u.Free>>20, a.o.StateDir)
	}
	a.problems.set("disk", text)
}

// maxPing is the longest text of a ping that is repeated.
const maxPing = 64

// beat is a sign of life; ping is the text of the ping that it answers.
func (a *Agent) beat(leaving bool, ping string) []byte {
	queue, running := a.core.load()
	data, err := json.Marshal(muster.Beat{
		Node: a.o.Node, Instance: a.instance, Time: time.Now(), Queue: queue, Running: running, Leaving: leaving,
		Revoked: a.revokedMark(), RTT: float64(a.rtt.Load()) / 1e6, Ping: ping,
	})
	if err != nil {
		panic(err) // plain fields
	}
	return data
}

// helloEvery is how often facts are gathered again.
const helloEvery = 10 * time.Minute

// heartbeat says at intervals that the node is there, and answers pings.
func (a *Agent) heartbeat(ctx context.Context, conn *bus.Conn) {
	stop, err := conn.Serve(conn.Subjects().Ping(), func(r bus.Request) {
		if len(r.Data) > maxPing {
			return
		}
		a.hearRevoked(string(r.Data))
		if err := conn.Tell(conn.Subjects().Alive(conn.Mailbox(), a.o.Node), a.beat(false, string(r.Data))); err != nil {
			a.log.Debug("ping was not answered", "err", err)
		}
	})
	if err != nil {
		a.log.Warn("pings will not be answered in this session", "err", err)
	} else {
		defer stop()
	}
	beat, again := time.NewTicker(a.o.Heartbeat), time.NewTicker(helloEvery)
	defer beat.Stop()
	defer again.Stop()
	for {
		if rtt, err := conn.RTT(); err == nil {
			a.rtt.Store(int64(rtt))
		}
		if err := conn.Tell(conn.Subjects().Alive(conn.Mailbox(), a.o.Node), a.beat(false, "")); err != nil {
			a.log.Debug("heartbeat was not sent", "err", err)
		}
		select {
		case <-beat.C:
			a.policy()
			if !a.problems.changed() {
				continue
			}
		case <-again.C:
		case <-a.o.Again:
		case <-ctx.Done():
			return
		}
		if err := a.hello(ctx, a.helloSubject(conn), conn.Put); err != nil {
			a.log.Debug("hello was not sent", "err", err)
		}
	}
}

// farewell tells the others that the node leaves, if the connection still is.
func (a *Agent) farewell(conn *bus.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := conn.Tell(conn.Subjects().Alive(conn.Mailbox(), a.o.Node), a.beat(true, ""))
	if err := errors.Join(err, conn.Flush(ctx)); err != nil {
		a.log.Debug("goodbye was not said", "err", err)
	}
}

// receive reads withdrawals and commands until the connection ends.
func (a *Agent) receive(ctx context.Context, conn *bus.Conn, aside *conflicts) error {
	stop, err := conn.Serve(conn.Subjects().Control(conn.Mailbox(), a.o.Node), func(r bus.Request) { a.control(r.Data) })
	if err != nil {
		return err
	}
	defer stop()
	for attempt := 0; ; attempt++ {
		a.core.listen()
		if err := a.readRevoked(ctx, conn); err != nil {
			return err
		}
		// What was withdrawn while the node was away must be known before the
		// first command is.
		switch last, err := conn.Last(ctx, bus.StreamControl, conn.Subjects().Control(conn.Mailbox(), a.o.Node)); {
		case err == nil:
			a.control(last.Data)
		case muster.KindOf(err) != muster.NotFound:
			return err
		}
		reading, stop := a.untilRevoked(ctx)
		err := conn.Commands(reading, a.o.Node, func(m bus.Message) error { attempt = 0; return a.message(reading, conn, m, aside) })
		again := context.Cause(reading) == errRevokedNews
		stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if again {
			continue
		}
		select {
		case <-time.After(reconnectDelay(attempt)):
			a.log.Warn("queue is read anew; were its credentials revoked, or does another agent use this identity?", "err", err)
		case <-ctx.Done(): // the connection was lost, and not only the queue
			return context.Cause(ctx)
		}
	}
}

// message takes in one message of the queue.
func (a *Agent) message(ctx context.Context, conn *bus.Conn, m bus.Message, aside *conflicts) error {
	if err := a.core.reserve(ctx); err != nil {
		return err
	}
	cmd, caller, err := a.verify(m.Data)
	if errors.Is(err, aaa.ErrUnauthentic) || (err != nil && cmd.ID.Validate() != nil) || (err != nil && cmd.Node != a.o.Node) {
		return a.setAside(ctx, conn, m, muster.Command{}, caller, err)
	}
	var refusal *muster.Error
	if err != nil {
		refusal = muster.AsError(muster.Denied, err)
	}
	a.core.deliver(parcel{
		cmd: cmd, caller: caller, refusal: refusal, stored: delivery.Mark{Stream: m.Stream, Seq: m.Seq}, ack: m.Ack,
		aside: func(cause error) { aside.add(conflict{m, cmd, caller, cause}) },
	})
	return nil
}

// A conflict is a message whose command has the id of another one.
type conflict struct {
	m      bus.Message
	cmd    muster.Command
	caller aaa.Caller
	cause  error
}

// conflicts are those of one session, at most as many as the broker hands out
// without an acknowledgement.
type conflicts struct {
	wake *signal

	mu  sync.Mutex // guards all
	all []conflict
}

func (c *conflicts) add(x conflict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, x)
	c.wake.set()
}

func (c *conflicts) take() []conflict {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

// setConflictsAside does so for as long as the session lasts. What could not be
// moved the broker delivers again.
func (a *Agent) setConflictsAside(ctx context.Context, conn *bus.Conn, c *conflicts) {
	for {
		for _, x := range c.take() {
			if err := a.setAside(ctx, conn, x.m, x.cmd, x.caller, x.cause); err != nil {
				a.log.Warn("message could not be set aside", "subject", x.m.Subject, "err", err)
			}
		}
		select {
		case <-c.wake.c:
		case <-ctx.Done():
			return
		}
	}
}

// verify decodes what a stranger may have made. A panic is a defect, but must
// not stop the agent: the message is set aside.
func (a *Agent) verify(frame []byte) (cmd muster.Command, caller aaa.Caller, err error) {
	defer func() {
		if r := recover(); r != nil {
			a.log.Error("verifying a message panicked", "panic", r)
			err = errors.Join(aaa.ErrUnauthentic, muster.Errorf(muster.Internal, "verifying it panicked: %v", r))
		}
	}()
	return a.o.Verifier.Verify(frame, a.o.Node, time.Now())
}

// setAside moves a message that cannot be taken for a command to the dead
// letters. Nothing is reported under the id that it claims: anybody could
// claim any id.
func (a *Agent) setAside(ctx context.Context, conn *bus.Conn, m bus.Message, cmd muster.Command, caller aaa.Caller, cause error) error {
	a.log.Warn("message is set aside", "subject", m.Subject, "err", cause)
	verdict := aaa.Unauthentic
	if caller.Name != "" {
		verdict = aaa.Denied
	}
	rec := a.decided(cmd, caller, verdict)
	rec.Reason = cause.Error()
	if err := a.core.record(ctx, rec); err != nil {
		return err
	}
	err := conn.Put(ctx, bus.Outgoing{
		Subject: conn.Subjects().Dead(conn.Mailbox(), a.o.Node), Data: m.Data,
		Header: map[string]string{bus.HeaderReason: headerText(cause.Error()), bus.HeaderSubject: m.Subject},
	})
	if err != nil {
		return err // it stays in the queue
	}
	return m.Ack()
}

// headerText makes a text fit for a header: one line of printable ASCII.
func headerText(s string) string {
	out := make([]byte, 0, min(len(s), 500))
	for i := 0; i < len(s) && len(out) < 500; i++ {
		if c := s[i]; c >= ' ' && c < 0x7f {
			out = append(out, c)
		}
	}
	return string(out)
}

// maxControl bounds the withdrawals that are in force for one node.
const maxControl = 1000

// control takes in the withdrawals in force for this node: an array of frames.
// Each is verified like a command.
func (a *Agent) control(data []byte) {
	var frames []json.RawMessage
	if err := json.Unmarshal(data, &frames); err != nil || len(frames) > maxControl {
		a.log.Warn("withdrawals cannot be read", "err", err, "count", len(frames))
		return
	}
	for _, f := range frames {
		cmd, caller, err := a.verify(f)
		if a.withdrawn.seen(cmd.ID) {
			continue
		}
		if err == nil && cmd.Method != muster.MethodCancel {
			err = muster.Errorf(muster.Invalid, "method %s among the withdrawals", cmd.Method)
		}
		if err == nil {
			err = a.core.withdraw(cmd, caller)
		}
		if err != nil {
			a.log.Warn("withdrawal is refused", "caller", caller.Name, "err", err)
			a.core.refuse(cmd, caller, err)
		}
	}
}
