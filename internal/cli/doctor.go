package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/musterfleet/muster/client"
)

func (p *program) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check the way to the broker and the health of the fleet",
		Long: `Check the ways to the broker, what is stored there, the clocks, and the nodes:
what to call when something does not work. Each check is ok, warn or fail, and
says what to do. The exit code is 1 when one fails.`,
		Example: `  muster doctor
  muster doctor --context production -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var health client.Health
			err := p.ask(cmd.Context(), func(ctx context.Context, c SDK) error {
				health = c.Check(ctx)
				return nil
			})
			if cmd.Context().Err() != nil {
				return cmd.Context().Err()
			}
			if err != nil {
				// That there is no way to the broker is a finding, too.
				health.Checks = []client.Check{{Name: "connect", Level: "fail", Message: message(err), Hint: hintOf(err)}}
			}
			code := ExitOK
			for _, c := range health.Checks {
				if c.Level == "fail" {
					code = ExitError
				}
			}
			err = list(p, health.Checks, func() *table {
				t := newTable("CHECK", "RESULT", "MESSAGE", "WHAT TO DO")
				t.wraps = true // what to do must not be cut
				for _, f := range health.Checks {
					t.row(f.Name, cell{f.Level, levelColor(f.Level)}, f.Message, f.Hint)
				}
				return t
			})
			if err != nil {
				return err
			}
			return exit(code)
		},
	}
}

func levelColor(level string) string {
	switch level {
	case "ok":
		return green
	case "warn":
		return yellow
	}
	return red
}
