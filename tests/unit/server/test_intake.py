from .plant import Plant
def test_x(plant: Plant) -> None:
    print(plant.get("/healthz"))
    m = plant.machine()
    print(m.check_in())
    print(plant.operate("GET", "/api/rollouts").said, plant.operate("GET", "/api/releases").said)
    assert 0
