package participant

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"
)

// HintFile is the usual name of an agent's AgentOptions.HintFile, in its folder of
// state.
const HintFile = "broker.hint"

// hintWait is how long the loop may take to look at a hint.
const hintWait = 2 * time.Second

// readHints gives the node the hints that there are at the start. One that no
// operator has signed is named and not used.
func (a *Agent) readHints() {
	kept, err := os.ReadFile(a.o.HintFile)
	if err != nil && a.o.HintFile != "" && !errors.Is(err, fs.ErrNotExist) {
		a.log("the hint of the broker's address cannot be read: " + err.Error())
	}
	for _, data := range append([][]byte{kept}, a.o.Hints...) {
		if len(data) == 0 {
			continue
		}
		if err := a.node.TakeHint(data); err != nil {
			a.log("not used: " + err.Error())
		}
	}
	hint := a.node.Hint()
	a.hint.Store(&hint)
}

// takeHint takes what an operator has sent.
func (a *Agent) takeHint(data []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), hintWait)
	defer cancel()
	var err error
	if stopped := a.loop.Do(ctx, func(time.Time) { err = a.node.TakeHint(data) }); stopped != nil {
		return stopped
	}
	return err
}

// hinted keeps a newer hint, for others to read and for the next start.
func (a *Agent) hinted(data []byte) {
	hint := a.node.Hint()
	a.hint.Store(&hint)
	a.log("newcomers are told that the broker is at " + hint.String())
	if a.o.HintFile != "" {
		if err := writeLock(a.o.HintFile, data); err != nil {
			a.log("the hint of the broker's address cannot be kept: " + err.Error())
		}
	}
	if a.o.Hinted != nil {
		a.o.Hinted(hint.URLs)
	}
}

// Hint returns where an operator says that the broker is, nothing if none has.
func (a *Agent) Hint() []string { return a.hint.Load().URLs }
