//go:build !linux

package methods

import (
	"context"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// EndTagged kills every process that was started with the given variable in
// its environment. It needs /proc as Linux has it: here it fails with kind
// Unsupported.
func EndTagged(context.Context, string) (ended []method.Orphan, err error) {
	return nil, muster.Errorf(muster.Unsupported, "processes of an interrupted run cannot be found on this system").
		WithHint("only Linux shows the environment of processes")
}
