package bus

import (
	"cmp"
	"context"
	"maps"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/musterfleet/muster"
)

// lengthRequests is how many streams are asked at a time. Many answers at once
// would get in the way of whatever else a slow link carries.
const lengthRequests = 16

// QueueLengths returns how many commands the broker keeps for each of the nodes,
// in all their lanes; no entry for one that has none. It asks each stream that
// has a queue among them once, however many nodes there are.
func (c *Conn) QueueLengths(ctx context.Context, nodes []muster.NodeName) (map[muster.NodeName]int, error) {
	wanted := make(map[muster.NodeName]bool, len(nodes))
	for _, n := range nodes {
		wanted[n] = true
	}
	lengths := make(map[muster.NodeName]int)
	err := c.eachQueue(ctx, func(s Subjects) error {
		found, err := c.subjectCounts(ctx, s, nodes)
		for subject, count := range found {
			if n, ok := s.receiver(subject); ok && wanted[n] {
				lengths[n] += int(count)
			}
		}
		return err
	})
	return lengths, err
}

// subjectCounts returns what is stored under each subject in those streams of
// one set that have a queue of the nodes.
func (c *Conn) subjectCounts(ctx context.Context, s Subjects, nodes []muster.NodeName) (map[string]uint64, error) {
	filters := make(map[int]string) // by shard
	for _, n := range nodes {
		shard := s.Shard(n)
		if _, shared := filters[shard]; shared {
			filters[shard] = s.Prefix + ".command." + s.queues().token(shard) + ".>"
		} else {
			filters[shard] = s.Commands(n)
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards all and failed
	all, failed := make(map[string]uint64), error(nil)
	slots := make(chan struct{}, lengthRequests)
	for shard, filter := range filters {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			found, err := c.streamCounts(ctx, s.queues().stream(shard), filter)
			if muster.KindOf(err) == muster.NotFound && s.Generation != c.settings.Generation {
				return // of an older set, and removed since it was empty
			}
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(all, found)
			failed = cmp.Or(failed, err)
		})
	}
	wg.Wait()
	return all, failed
}

func (c *Conn) streamCounts(ctx context.Context, name, filter string) (map[string]uint64, error) {
	stream, err := c.js.Stream(ctx, name)
	if err != nil {
		return nil, natsError(err, "read the queues in "+name)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, natsError(err, "read the queues in "+name)
	}
	return info.State.Subjects, nil
}

// receiver reads the node from the subject of a command.
func (s Subjects) receiver(subject string) (muster.NodeName, bool) {
	_, tail, ok := s.rest(subject, "command", 1)
	parts := strings.Split(string(tail), ".")
	if !ok || len(parts) < 3 { // node, kind, method
		return "", false
	}
	return muster.NodeName(strings.Join(parts[:len(parts)-2], ".")), true
}
