package bus

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A cluster without a leader is asked again, for a while, and any other answer counts.
func TestLeading(t *testing.T) {
	none, wrong := error(&jetstream.APIError{Code: 503, ErrorCode: 10008}), errors.New("wrong")
	for name, test := range map[string]struct {
		answers []error // the last one is given again and again; nil for success
		silent  bool    // at first
		closed  bool
		tries   int
		want    error
		took    time.Duration
	}{
		"at once":          {[]error{nil}, false, false, 1, nil, 0},
		"then":             {[]error{none, none, nil}, false, false, 3, nil, 2 * requestAgain},
		"after a silence":  {[]error{nil}, true, false, 2, nil, requestTimeout + requestAgain},
		"never":            {[]error{none}, false, false, int(recordTimeout/requestAgain) + 1, none, recordTimeout},
		"another error":    {[]error{none, wrong}, false, false, 2, wrong, requestAgain},
		"the end, as well": {[]error{none}, false, true, 1, none, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &Conn{done: make(chan struct{})}
				if test.closed {
					close(c.done)
				}
				tries, began := 0, time.Now()
				err := c.leading(t.Context(), func(ctx context.Context) error {
					tries++
					if test.silent && tries == 1 {
						<-ctx.Done()
						return ctx.Err()
					}
					err := test.answers[0]
					if len(test.answers) > 1 {
						test.answers = test.answers[1:]
					}
					return err
				})
				if took := time.Since(began); !errors.Is(err, test.want) || tries != test.tries || took != test.took {
					t.Errorf("got %v after %d tries and %s, want %v after %d and %s", err, tries, took, test.want, test.tries, test.took)
				}
			})
		})
	}
}
