package platform

import (
	"context"
	"time"

	"sft"
)

// Info is what anybody may know of a platform.
type Info struct {
	Version string    `json:"version"` // of the program, as in 1.2.3
	Time    time.Time `json:"time"`    // by the platform's clock
	URL     string    `json:"url"`     // as people and agents reach it
}

// Info tells what anybody may know of the platform. It asks nothing of the
// database.
func (p *Platform) Info(context.Context, Actor, struct{}) (Info, error) {
	return Info{sft.Version, p.Now().UTC(), p.URL}, nil
}
