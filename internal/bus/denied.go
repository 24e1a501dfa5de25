package bus

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/musterfleet/muster"
)

// A broker says that a message was not permitted to the connection, not to who
// waits for an answer to it: that would wait until its time is over. So whoever
// waits is told here.

// deniedSubject reads the subject of a message that was not permitted.
func deniedSubject(err error) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, tail, ok := strings.Cut(err.Error(), `Publish to "`)
	if !ok {
		return "", false
	}
	subject, _, ok = strings.Cut(tail, `"`)
	return subject, ok
}

func deniedError(subject string) error {
	return muster.Errorf(muster.Denied, "your context may not do this: the broker does not let it publish %s", subject).
		WithHint("a context that was made with --method or --node is for sending and following; use that of an administrator")
}

// onDenied calls f with the subject of each message that is not permitted,
// until forget is called.
func (c *Conn) onDenied(f func(subject string)) (forget func()) {
	key := new(int)
	c.deniedMu.Lock()
	defer c.deniedMu.Unlock()
	if c.denied == nil {
		c.denied = make(map[*int]func(string))
	}
	c.denied[key] = f
	return func() {
		c.deniedMu.Lock()
		defer c.deniedMu.Unlock()
		delete(c.denied, key)
	}
}

func (c *Conn) tellDenied(subject string) {
	c.deniedMu.Lock()
	var all []func(string)
	for _, f := range c.denied {
		all = append(all, f)
	}
	c.deniedMu.Unlock()
	for _, f := range all {
		f(subject)
	}
}

// permitted calls f, and ends it with an error of kind Denied when the broker
// does not permit a message whose subject contains part.
func (c *Conn) permitted(ctx context.Context, part string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.onDenied(func(subject string) {
		if strings.Contains(subject, part) {
			cancel(deniedError(subject))
		}
	})()
	err := f(ctx)
	if cause := context.Cause(ctx); err != nil && muster.KindOf(cause) == muster.Denied {
		return cause
	}
	return err
}
