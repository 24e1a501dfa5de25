package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/config"
	"github.com/musterfleet/muster/internal/constellation"
)

func (p *program) orderKeygen() *cobra.Command {
	var key, dir string
	var urls []string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a constellation, and you as its operator",
		Long: `Make the file that the agents of a constellation share, and the file that makes
you its operator, both for your eyes only. Files that exist are never replaced:
agents that have them would be lost.

Copy constellation.json to every machine, as /etc/muster/constellation.json with
mode 0600, or build it into the program. Keep operator.json to yourself, and a
copy of both where you find it when nothing works any more.`,
		Example: `  muster order keygen
  muster order keygen --key lab --out ./lab --broker tls://10.0.0.7:4222
  scp ~/.config/muster/constellation.json root@web1:/etc/muster/`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				home, err := config.Home()
				if err != nil {
					return err
				}
				dir = home
			}
			return p.keygen(key, dir, urls)
		},
	}
	cmd.Flags().StringVar(&key, "key", "muster", "name of the constellation on the wire, at most 32 bytes")
	cmd.Flags().StringVar(&dir, "out", "", "folder for both files (default: ~/.config/muster)")
	cmd.Flags().StringSliceVar(&urls, "broker", nil, "address of the fleet's broker, signed into the file for newcomers; can be repeated")
	return cmd
}

func (p *program) keygen(key, dir string, urls []string) error {
	c, o, err := constellation.Generate(key, rand.Reader)
	if err != nil {
		return err
	}
	if len(urls) > 0 {
		if c.Hint, err = p.signHint(c, o, urls); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return muster.Errorf(muster.Unavailable, "make the folder for the files: %w", err).WithHint("choose another with --out")
	}
	shared, own := filepath.Join(dir, constellationFile), filepath.Join(dir, operatorFile)
	// Both or none: half of a pair is of no use, and looks like a whole one.
	if _, err := os.Lstat(own); !errors.Is(err, fs.ErrNotExist) {
		return muster.Errorf(muster.Conflict, "%s exists already", own).WithHint("choose another folder with --out: neither file is ever replaced")
	}
	if err := c.Write(shared); err != nil {
		return err
	}
	if err := o.Write(own); err != nil {
		return errors.Join(err, os.Remove(shared))
	}
	data := map[string]any{"key": key, "constellation": shared, "operator": own}
	err = show(p, data, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "constellation  %s\noperator       %s\n", shared, own)
		return err
	})
	p.say("next: copy %s to each machine as /etc/muster/%s, mode 0600, and keep %s to yourself: whoever has it can call these machines to order",
		filepath.Base(shared), constellationFile, filepath.Base(own))
	return err
}
