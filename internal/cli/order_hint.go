package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
	"github.com/musterfleet/muster/internal/methods/onsite"
	"github.com/musterfleet/muster/internal/order"
)

func (p *program) orderHint(f *orderFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "hint URL...",
		Short: "Sign where the broker is, for newcomers",
		Long: `Write the broker's addresses into the constellation's file, signed by you as an
operator. Agents that have the file tell them to the others, and the newest
counts; nobody uses one that no operator has signed. A node that joins the
fleet, and cannot reach its broker where its token says that it is, tries them.

One agent that starts with the new file is enough. 'muster order query broker
URL' tells those that run, and has the nodes of the fleet among them dial it.`,
		Example: `  muster order hint tls://broker.example.net:4222
  muster order hint --constellation lab.json --operator me.json wss://10.0.0.7`,
		Args: cobra.RangeArgs(1, onsite.MaxURLs),
		RunE: func(_ *cobra.Command, urls []string) error {
			path := f.constellationPath(p)
			if path == "" {
				return muster.Errorf(muster.NotFound, "there is no constellation file to write to").WithHint("name it with --constellation")
			}
			c, err := constellation.Read(path)
			if err != nil {
				return err
			}
			o, err := f.readOperator(p, c)
			if err != nil {
				return err
			}
			if c.Hint, err = p.signHint(c, o, urls); err != nil {
				return err
			}
			if err := c.Replace(path); err != nil {
				return err
			}
			data := map[string]any{"key": c.Key, "constellation": path, "urls": urls}
			err = show(p, data, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "constellation  %s\nbroker         %s\n", path, strings.Join(urls, " "))
				return err
			})
			p.say("next: copy it to an agent, as it was copied before, and start that again")
			return err
		},
	}
}

// constellationPath is the file that readConstellation reads, "" if it is none.
func (f *orderFlags) constellationPath(p *program) string {
	if f.constellation != "" {
		return f.constellation
	}
	if value := strings.TrimSpace(p.env(constellation.Variable)); value != "" {
		if strings.HasPrefix(value, "{") {
			return ""
		}
		return value
	}
	return findFile(constellationFile)
}

// signHint has an operator say where the broker is.
func (p *program) signHint(c constellation.Constellation, o constellation.Operator, urls []string) ([]byte, error) {
	for _, u := range urls {
		if err := config.ValidateURL(u); err != nil {
			return nil, err
		}
	}
	return order.SignHint(order.Hint{IssuedAt: p.now().UnixMilli(), URLs: urls}, c.Key, o.PrivateKey())
}

// signed returns a question with what only an operator can add to it: where the
// broker is, for newcomers.
func (q question) signed(p *program, f *orderFlags) (question, error) {
	if len(q.urls) == 0 {
		return q, nil
	}
	c, err := f.readConstellation(p)
	if err != nil {
		return q, err
	}
	o, err := f.readOperator(p, c)
	if err != nil {
		return q, err
	}
	hint, err := p.signHint(c, o, q.urls)
	q.args = [][]byte{onsite.Broker{URLs: q.urls, Hint: hint}.Encode()}
	return q, err
}
