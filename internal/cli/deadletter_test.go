package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

type lettered struct {
	fakeSDK
	removed []uint64
}

func (f *lettered) DeadLetters(context.Context, muster.NodeName) ([]client.DeadLetter, error) {
	return []client.DeadLetter{{Seq: 1, Node: "a"}, {Seq: 2, Node: "a", Data: []byte("\x1b[2J")}}, nil
}

func (f *lettered) DropDeadLetter(_ context.Context, seq uint64) error {
	f.removed = append(f.removed, seq)
	return nil
}

func TestDeadLetters(t *testing.T) {
	for _, test := range []struct {
		args    string
		code    int
		want    string // on stderr or stdout
		removed int
	}{
		{"rm 1 2", ExitOK, "removed dead letter 2", 2},
		{"rm 1 2 --dry-run", ExitOK, "2 dead letters would be removed", 0},
		{"rm 1 3", ExitError, "error: there is no dead letter 3", 0},
		{"rm 3 --dry-run", ExitError, "error: there is no dead letter 3", 0},
		{"requeue x", ExitUsage, "not the number of a dead letter", 0},
		{"show 2", ExitOK, `data    "\x1b[2J"`, 0},
	} {
		f := &lettered{}
		code, out, errs := tryWith(t.Context(), f, append([]string{"deadletter"}, strings.Fields(test.args)...)...)
		if code != test.code || len(f.removed) != test.removed || !strings.Contains(out+errs, test.want) {
			t.Errorf("deadletter %s: got exit code %d, %d removed and %q", test.args, code, len(f.removed), out+errs)
		}
	}
}
