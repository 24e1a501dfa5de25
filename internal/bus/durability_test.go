package bus

import (
	"testing"

	"github.com/nats-io/nats.go"
)

// An answer is of a server that stores something and has a name, or is none.
func FuzzParseSync(f *testing.F) {
	f.Add([]byte(`{"server":{"name":"a"},"data":{"config":{"sync_always":true},"meta_cluster":{"cluster_size":3}}}`))
	f.Add([]byte(`{"server":{"name":"a"},"data":{"disabled":true}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, cluster, ok := parseSync(&nats.Msg{Data: data})
		if ok != (s.Server != "") || !ok && (s.Always || cluster != 0) {
			t.Errorf("%q: %+v, of %d, %t", data, s, cluster, ok)
		}
	})
}
