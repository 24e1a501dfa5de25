package config

import (
	"github.com/nats-io/jwt/v2"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// ParseCreds takes a .creds text apart. Errors never quote the seed.
func ParseCreds(creds aaa.Secret) (userJWT string, seed aaa.Secret, err error) {
	text := creds.Reveal()
	if len(text) > aaa.MaxCreds {
		return "", aaa.Secret{}, muster.Errorf(muster.Invalid, "credentials are longer than %d bytes", aaa.MaxCreds)
	}
	userJWT, err = jwt.ParseDecoratedJWT(text)
	if err != nil || userJWT == "" {
		return "", aaa.Secret{}, muster.Errorf(muster.Corrupt, "credentials cannot be read; expected a .creds file")
	}
	pair, err := jwt.ParseDecoratedUserNKey(text)
	if err != nil {
		return "", aaa.Secret{}, muster.Errorf(muster.Corrupt, "credentials hold no user key; expected a .creds file")
	}
	s, err := pair.Seed()
	if err != nil {
		return "", aaa.Secret{}, muster.Errorf(muster.Corrupt, "credentials hold no user key; expected a .creds file")
	}
	return userJWT, aaa.NewSecret(s), nil
}

// ReadCreds reads a .creds file.
func ReadCreds(path string) (aaa.Secret, error) {
	data, err := readFile(path)
	return aaa.NewSecret(data), err
}
