package app

import (
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/config"
)

// ClientOptions reads how to reach the fleet of a context; empty is the
// current one (see config.Current).
func ClientOptions(context string) (client.Options, error) {
	c, err := config.OpenContext(context)
	if err != nil {
		return client.Options{}, err
	}
	outbox, err := config.OutboxDir(c.Name)
	if err != nil {
		return client.Options{}, err
	}
	return client.Options{
		URLs: c.URLs, Credentials: c.Credentials.Reveal(), CA: c.CA, Prefix: c.Prefix,
		Identity: c.Identity.Reveal(), OutboxDir: outbox, Name: "muster",
	}, nil
}
